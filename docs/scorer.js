// How a search result is ranked: first the lesson whose title has all that is looked for, or whose topic it is (docs_sources.py), then what Sphinx thinks.
var Scorer = {
  score: ([page, title, anchor, , score, , kind]) => {
    const wanted = (new URLSearchParams(location.search).get('q') ?? '').toLowerCase().split(/\s+/);
    const titled = !anchor && wanted.every(word => title.toLowerCase().includes(word));
    return page.startsWith('course/') && (titled || kind === 'index') ? score + 1000 : score;
  },
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0, title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};

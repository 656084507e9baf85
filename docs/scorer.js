// How a search result is ranked: first the page whose topic it is (docs_sources.py) or the lesson whose title has all that is looked for, then a word of the glossary, then what Sphinx thinks.
var Scorer = {
  score: ([page, title, anchor, , score, , kind]) => {
    const asked = (new URLSearchParams(location.search).get('q') ?? '').toLowerCase().split(/\s+/);
    const wanted = asked.filter(word => !['what', 'is', 'a', 'an', 'the', 'how', 'to', 'do', 'does', 'i'].includes(word));
    const words = title.toLowerCase().split(/[^\p{L}\p{N}-]+/u);
    const titled = wanted.length && wanted.every(word => words.some(one => one === word || word.length > 2 && one.startsWith(word)));
    if (page === 'glossary') return titled ? score + 500 : score;
    if (!page.startsWith('course/')) return kind === 'index' ? score + 1000 : score;
    return kind === 'index' || titled && !anchor ? score + 1000 : score + 6; // of equals the lesson
  },
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0, title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};

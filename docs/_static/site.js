// Code that is wider than the page scrolls; a keyboard can scroll only what it can reach.
addEventListener('load', () => document.querySelectorAll('pre').forEach(pre => { if (pre.scrollWidth > pre.clientWidth || pre.scrollHeight > pre.clientHeight) pre.tabIndex = 0; }));

// The list of pages shows where the reader is.
addEventListener('DOMContentLoaded', () => {
  const list = document.querySelector('.sidebar-scroll'), here = list?.querySelector('a.current');
  if (here) list.scrollTo({top: here.getBoundingClientRect().top - list.getBoundingClientRect().top - list.clientHeight/2, behavior: 'instant'});
});

// A search result says what kind of page it leads to.
const KINDS = {course: 'Course', api: 'Reference', interop: 'How-to', gpu: 'How-to', _modules: 'Source', results: 'Results', glossary: 'Glossary'};
addEventListener('DOMContentLoaded', () => {
  const results = document.getElementById('search-results');
  if (results) new MutationObserver(() => results.querySelectorAll('li:not(:has(.found-in))').forEach(entry => {
    const [first, inside] = new URL(entry.querySelector('a').href).pathname.replace(new URL(document.documentElement.dataset.content_root, location.href).pathname, '').split(/[/.]/);
    const kind = document.createElement('span');
    kind.className = 'found-in';
    kind.textContent = KINDS[first] ?? (inside === 'html' ? 'Page' : 'Library');
    entry.prepend(kind);
  })).observe(results, {childList: true, subtree: true});
});

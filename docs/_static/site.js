// What is wider than its box scrolls there: a keyboard can reach it, and it fades at the end that hides something.
const BOXES = 'article pre, article .table-wrapper, article mjx-container, article a.full';
function scrolls(box) {
  if (box.matches('mjx-container:not([display])')) {
    box.classList.remove('wide'); // measured as it stands in the line, each time anew
    box.classList.toggle('wide', box.offsetWidth > box.parentElement.closest('p, td, dd, div').clientWidth);
  }
  const wide = box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX === 'auto';
  const ends = () => box.classList.toggle('more', wide && box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  box.classList.toggle('scrolls', wide);
  if (wide || box.scrollHeight > box.clientHeight + 1 && box.matches('pre')) box.tabIndex = 0;
  box.onscroll = ends;
  ends();
}
const allScroll = () => document.querySelectorAll(BOXES).forEach(scrolls);
addEventListener('load', async () => { await window.MathJax?.startup?.promise; allScroll(); });
addEventListener('resize', allScroll);
addEventListener('toggle', event => event.target.querySelectorAll?.(BOXES).forEach(scrolls), true);

// The list of pages shows where the reader is.
addEventListener('DOMContentLoaded', () => {
  const list = document.querySelector('.sidebar-scroll'), here = list?.querySelector('a.current');
  if (here) list.scrollTo({top: here.getBoundingClientRect().top - list.getBoundingClientRect().top - list.clientHeight/2, behavior: 'instant'});
});

// A search result says what kind of page it leads to.
const KINDS = {course: 'Course', api: 'Reference', interop: 'How-to', gpu: 'How-to', _modules: 'Source', results: 'Results', glossary: 'Glossary', '00_core': 'Library'};
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

// The labels that open the two drawers are buttons, also for a keyboard.
addEventListener('DOMContentLoaded', () => document.querySelectorAll('label.nav-overlay-icon, label.toc-overlay-icon').forEach(label => {
  label.tabIndex = 0;
  label.role = 'button';
  label.ariaLabel = label.control.ariaLabel;
  label.onkeydown = event => {
    if (event.key !== 'Enter' && event.key !== ' ') return;
    event.preventDefault();
    label.click();
    const drawer = document.querySelector(label.htmlFor === '__toc' ? '.toc-drawer' : '.sidebar-drawer');
    if (label.control.checked) setTimeout(() => drawer.querySelector('a[href], input').focus(), 300); // when it is visible
  };
}));
// They close when a place on the page was chosen, or by Escape.
const closeDrawers = () => ['__navigation', '__toc'].forEach(id => { document.getElementById(id).checked = false; });
addEventListener('keydown', event => { if (event.key === 'Escape') closeDrawers(); });
addEventListener('click', event => { if (event.target.closest?.('.toc-drawer a')) closeDrawers(); });

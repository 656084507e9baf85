// Code that is wider than the page scrolls; a keyboard can scroll only what it can reach.
addEventListener('load', () => document.querySelectorAll('pre').forEach(pre => { if (pre.scrollWidth > pre.clientWidth || pre.scrollHeight > pre.clientHeight) pre.tabIndex = 0; }));

// Not a module, because modules run after the first paint: a remembered dark theme would begin with a white flash.
try {
  document.documentElement.dataset.theme = localStorage.getItem('theme') ?? 'system';
} catch {
  // A browser may refuse storage. The system's theme is right then.
}

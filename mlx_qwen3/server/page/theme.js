// Loaded before the page is drawn, and not as a module, so that a chosen theme does not flash.
// theme: "light", "dark", or null for what the system says.

(() => {
  const NAME = "mlx-qwen3.theme";
  const root = document.documentElement;

  function apply(theme) {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  }

  function stored() {
    try {
      return localStorage.getItem(NAME);
    } catch {
      return null; // a browser that keeps nothing
    }
  }

  window.pageTheme = {
    get: () => root.dataset.theme ?? null,
    set(theme) {
      apply(theme);
      if (theme) localStorage.setItem(NAME, theme);
      else localStorage.removeItem(NAME);
    },
  };
  apply(stored());
  window.addEventListener("storage", ({ key }) => key === NAME && apply(stored()));
})();

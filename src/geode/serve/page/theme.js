// Light, dark, or as the system has it. Loaded before the rest, so that the page never flashes.

const NEXT = { auto: "light", light: "dark", dark: "auto" };
const NAMES = { auto: "as the system", light: "light", dark: "dark" };
const SIGNS = { auto: "◐", light: "○", dark: "●" };

const read = () => {
  try {
    return localStorage.getItem("geode-theme") ?? "auto";
  } catch {
    return "auto";
  }
};

let theme = read() in NEXT ? read() : "auto";

function apply() {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

apply();

export function watchTheme(button) {
  const show = () => {
    button.textContent = SIGNS[theme];
    button.title = `Colours: ${NAMES[theme]}`;
    button.setAttribute("aria-label", button.title);
  };
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    try {
      localStorage.setItem("geode-theme", theme);
    } catch {
      // it holds until the window closes
    }
    apply();
    show();
  });
  show();
}

// Light or dark: as the system is, until the reader chooses.
"use strict";
const THEME = "minarch-theme";
const remembered = (value) => {
  try {
    if (value) localStorage.setItem(THEME, value);
    return localStorage.getItem(THEME);
  } catch {
    return null; // a page that may keep nothing
  }
};
const turnTo = (theme) => {
  if (theme) document.documentElement.dataset.theme = theme;
};
const isDark = () =>
  (document.documentElement.dataset.theme ||
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) ===
  "dark";
turnTo(remembered());
const turn = document.createElement("button");
turn.type = "button";
turn.id = "theme";
const label = () => {
  turn.textContent = isDark() ? "Light" : "Dark";
  turn.setAttribute("aria-label", `${turn.textContent} colours`);
};
turn.addEventListener("click", () => {
  turnTo(remembered(isDark() ? "light" : "dark") || (isDark() ? "light" : "dark"));
  label();
});
label();
document.querySelector("header").append(turn);

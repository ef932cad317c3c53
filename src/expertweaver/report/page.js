// Draws every figure from the JSON beside it, again when the colour scheme changes, and in light for print.
(() => {
  "use strict";
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const darkOfLight = read("dark-of-light");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll(".plot")];
  const config = { responsive: true, displayModeBar: false, displaylogo: false };

  const inDark = (value) => {
    if (typeof value === "string") return Object.hasOwn(darkOfLight, value) ? darkOfLight[value] : value;
    if (Array.isArray(value)) return value.map(inDark);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, inDark(entry)]));
  };

  const draw = (place, asDark) => {
    const spec = read(place.id.replace("plot-", "data-"));
    const { data, layout } = asDark ? inDark(spec) : spec;
    return Plotly.react(place, data, layout, config);
  };

  const isShown = (place) => place.closest("[hidden]") === null;
  const drawShown = (asDark) => Promise.all(plots.filter(isShown).map((place) => draw(place, asDark)));

  const choose = (chooser) => {
    const chosen = chooser.querySelector("input:checked").value;
    for (const input of chooser.querySelectorAll("input")) {
      document.getElementById(input.value).hidden = input.value !== chosen;
    }
  };

  for (const chooser of document.querySelectorAll(".chooser")) {
    choose(chooser);
    chooser.addEventListener("change", () => {
      choose(chooser);
      drawShown(dark.matches);
    });
  }
  dark.addEventListener("change", () => drawShown(dark.matches));
  window.addEventListener("beforeprint", () => drawShown(false));
  window.addEventListener("afterprint", () => drawShown(dark.matches));
  drawShown(dark.matches).then(() => { document.documentElement.dataset.drawn = "true"; });
})();

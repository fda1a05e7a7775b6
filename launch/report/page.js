"use strict";
// Texts of plots are drawn on canvases, which style sheets do not reach: this sets their colours to
// the page's, also when these change.
function paint() {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft] = ["--ink", "--soft"].map(name => style.getPropertyValue(name).trim());
  const texts = {
    Title: { text_color: ink },
    Legend: { label_text_color: ink, title_text_color: ink },
    ColorBar: { title_text_color: ink, major_label_text_color: soft },
    LinearAxis: { axis_label_text_color: ink, major_label_text_color: soft },
    LogAxis: { axis_label_text_color: ink, major_label_text_color: soft },
  };
  for (const plots of Bokeh.documents)
    for (const model of plots.all_models)
      if (model.type in texts) model.setv(texts[model.type]);
}

function whenThere(act) {
  if (Bokeh.documents.length) act();
  else requestAnimationFrame(() => whenThere(act));
}

function switchLine(chip) {
  const shown = chip.getAttribute("aria-pressed") !== "true";
  chip.setAttribute("aria-pressed", shown);
  for (const plots of Bokeh.documents)
    for (const model of plots.all_models)
      if (model.name === chip.dataset.line) model.visible = shown;
}

function filterRows(field) {
  const section = field.closest("section"), text = field.value;
  const rows = [...section.querySelectorAll("tr.sample")];
  for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(text.toLowerCase());
  const left = rows.filter(row => !row.hidden).length;
  section.querySelector(".left").textContent = text ? `${left} of ${rows.length} rows` : "";
}

window.addEventListener("load", () => {
  whenThere(paint);
  for (const query of ["(prefers-color-scheme: dark)", "print"])
    matchMedia(query).addEventListener("change", paint);
  for (const chip of document.querySelectorAll(".chip"))
    chip.addEventListener("click", () => switchLine(chip));
  for (const field of document.querySelectorAll(".filter"))
    field.addEventListener("input", () => filterRows(field));
});

// Draws every chart of the page in the colours of the moment, and again when these change.
const themes = JSON.parse(document.getElementById("themes").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const views = new Map();

async function draw(figure, scheme) {
  const place = figure.querySelector(".plot");
  try {
    const { view } = await vegaEmbed(place, JSON.parse(figure.querySelector(".spec").textContent), {
      config: themes[scheme],
      renderer: "svg",
      ast: true, // expressions are interpreted: the page's policy forbids eval
      actions: false,
      defaultStyle: false,
      tooltip: { disableDefaultStyle: true },
    });
    views.get(figure)?.finalize();
    views.set(figure, view);
  } catch (error) {
    place.textContent = `This chart could not be drawn: ${error.message}`;
    console.error(error);
  }
}

const shown = (figure) => !figure.closest("details:not([open])");
const drawAll = (scheme) =>
  Promise.all([...document.querySelectorAll(".chart")].filter(shown).map((figure) => draw(figure, scheme)));
const scheme = () => (dark.matches ? "dark" : "light");

async function download(figure, kind) {
  const link = document.createElement("a");
  link.href = await views.get(figure).toImageURL(kind, 2);
  link.download = `${figure.dataset.name}.${kind}`;
  link.click();
}

for (const button of document.querySelectorAll("button[data-kind]")) {
  button.addEventListener("click", () => download(button.closest(".chart"), button.dataset.kind));
}
for (const details of document.querySelectorAll("details")) {
  // What is folded away has no size, so it is drawn when it is first opened.
  details.addEventListener("toggle", () => {
    for (const figure of details.querySelectorAll(".chart")) {
      if (shown(figure)) draw(figure, scheme());
    }
  });
}
dark.addEventListener("change", () => drawAll(scheme()));
addEventListener("beforeprint", () => drawAll("light"));
addEventListener("afterprint", () => drawAll(scheme()));
drawAll(scheme());

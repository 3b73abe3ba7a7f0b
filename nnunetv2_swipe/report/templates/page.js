"use strict";

const WIDTH = 480; // of a slice on the page, in pixels
const PLOTLY = { displaylogo: false, responsive: true };
const parsed = (element) => JSON.parse(element.textContent);
const COMMON = parsed(document.getElementById("common-data"));

/** Shows the slices of a volume: layers one above the other, and points. */
class SliceViewer {
  constructor(root, view) {
    this.view = view;
    const [n, rows, columns] = view.shape;
    this.canvas = document.createElement("canvas");
    const [, rowHeight, columnWidth] = view.spacing;
    this.canvas.width = WIDTH;
    this.canvas.height = Math.round((WIDTH * rows * rowHeight) / (columns * columnWidth));
    this.slider = document.createElement("input");
    Object.assign(this.slider, { type: "range", min: 0, max: n - 1, value: view.first, ariaLabel: "Slice" });
    this.number = document.createElement("output");
    const row = document.createElement("div");
    row.className = "slider";
    row.append("Slice", this.slider, this.number);
    row.hidden = n === 1;
    root.replaceChildren(this.canvas, row, this.layerBoxes());
    this.slider.addEventListener("input", () => this.draw());
    if (n > 1) this.canvas.addEventListener("wheel", (event) => this.turn(event), { passive: false });
    this.load();
  }

  layerBoxes() {
    const boxes = document.createElement("div");
    boxes.className = "layers";
    for (const layer of this.view.layers) {
      const label = document.createElement("label");
      const box = document.createElement("input");
      Object.assign(box, { type: "checkbox", checked: layer.shown });
      box.addEventListener("change", () => {
        layer.shown = box.checked;
        this.draw();
      });
      label.append(box, " ", layer.name);
      boxes.append(label);
    }
    return boxes;
  }

  async load() {
    this.pictures = this.view.layers.map((layer) => Object.assign(new Image(), { src: layer.source }));
    await Promise.all(this.pictures.map((picture) => picture.decode()));
    this.draw();
  }

  turn(event) {
    event.preventDefault();
    this.slider.valueAsNumber += Math.sign(event.deltaY);
    this.draw();
  }

  draw() {
    const { layers, shape, columns, slices, n_slices: nSlices, points = [], edges = [] } = this.view;
    const [n, h, w] = shape;
    const slice = this.slider.valueAsNumber;
    const context = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    const [left, top] = [(slice % columns) * w, Math.floor(slice / columns) * h];
    this.number.value = `${slices[slice] + 1} of ${nSlices}` + (n < nSlices ? ` (${n} are shown)` : "");
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, width, height);
    layers.forEach((layer, i) => {
      if (layer.shown) context.drawImage(this.pictures[i], left, top, w, h, 0, 0, width, height);
    });
    for (const [z, y, x, label] of points) {
      if (Math.round(z) !== slice) continue;
      context.fillStyle = COMMON.colours[label] ?? "#fff";
      context.strokeStyle = "#000";
      context.beginPath();
      context.arc(((x + 0.5) * width) / w, ((y + 0.5) * height) / h, 3, 0, 2 * Math.PI);
      context.fill();
      context.stroke();
    }
    this.write(context, edges);
  }

  /** Where the left, right, upper and lower edge lie in the patient. */
  write(context, [left, right, top, bottom]) {
    if (!left) return;
    const { width, height } = this.canvas;
    context.font = "bold 16px sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillStyle = "#fff";
    context.strokeStyle = "#000";
    context.lineWidth = 3;
    const places = [[left, 10, height / 2], [right, width - 10, height / 2], [top, width / 2, 12], [bottom, width / 2, height - 12]];
    for (const place of places) {
      context.strokeText(...place);
      context.fillText(...place);
    }
    context.lineWidth = 1;
  }
}

function plot(id, figure) {
  const root = document.getElementById(id);
  Plotly.purge(root);
  root.replaceChildren();
  if (figure) Plotly.newPlot(root, figure.data, figure.layout, PLOTLY);
}

function showCase(row) {
  document.querySelectorAll("tr.chosen").forEach((r) => r.classList.remove("chosen"));
  row.classList.add("chosen");
  const data = parsed(document.querySelectorAll(".case-data")[row.dataset.case]);
  document.getElementById("case-name").textContent = data.name;
  new SliceViewer(document.getElementById("slices"), data.view);
  document.getElementById("surface-column").hidden = !data.surfaces;
  plot("surfaces", data.surfaces);
}

const rows = document.querySelectorAll("tr[data-case]");
for (const row of rows) {
  row.addEventListener("click", () => showCase(row));
  row.addEventListener("keydown", (event) => event.key === "Enter" && showCase(row));
}
if (rows.length) showCase(rows[0]);

if (COMMON.curves) plot("curves", COMMON.curves);
if (COMMON.crop) new SliceViewer(document.getElementById("crop"), COMMON.crop);

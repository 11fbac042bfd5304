// Where everything of the picture stands: the cluster in, boxes and links out. Knows no document.

const CARD = { kind: "card", width: 178, height: 84 };
const SMALL = { kind: "tile", width: 124, height: 46 };
const END = { width: 92, height: 44 };
const GAP = { link: 104, smallLink: 66, row: 30, narrowRow: 40, tile: 10, column: 40, section: 22, edge: 4 };
const TITLE = { line: 26, detail: 18 };
const NARROW = 620;
/** Beyond so many cut pipelines they are drawn small, several beside each other. */
const MOST_LARGE = 4;
const WIDEST_TILE = 200;
/** Nodes without a stage that are drawn: anybody may invent names on an open broker. */
const MOST_IDLE = 400;

/** The slowest stage of a pipeline that has several: the whole of it goes at this one's pace. */
export function bottleneck(pipeline) {
  if (pipeline.stages.length < 2) return null;
  const time = (stage) => stage.measured_s ?? stage.predicted_s;
  return pipeline.stages.reduce((slowest, stage) => (time(stage) > time(slowest) ? stage : slowest));
}

/** agent-2 before agent-10. By hand: a browser's first collator takes longer to make than the rest of the page. */
export function compareNames(one, other) {
  const [left, right] = [partsOf(one), partsOf(other)];
  for (let index = 0; index < Math.min(left.length, right.length); index += 1) {
    if (left[index] === right[index]) continue;
    const difference = index % 2 === 1 ? Number(left[index]) - Number(right[index]) : 0;
    return difference || (left[index] < right[index] ? -1 : 1);
  }
  return left.length - right.length;
}

/** Words, at even places, and the numbers between them. */
const partsOf = (name) => name.split(/(\d+)/);

/**
 * Lay out models, their pipelines and the nodes that have nothing to do, in a width in pixels.
 *
 * Returns {height, titles, boxes, links}. A title is {x, y, text, detail, below}; a box is {kind: "jobs" |
 * "answers" | "card" | "tile", x, y, width, height, node, model, pipeline, stage, slowest}; a link goes from one
 * box's index to another's, with the stage that feeds it (null: jobs) and the one it feeds (null: answers).
 */
export function layout(store, width) {
  const found = { titles: [], boxes: [], links: [], height: 0 };
  const models = [...store.models.values()].sort((one, other) => compareNames(one.model, other.model));
  const large = models.reduce((sum, model) => sum + cutOf(model).length, 0) <= MOST_LARGE;
  const used = new Set();
  let y = GAP.edge;
  for (const model of models) {
    y = title(found, model.model, subtitle(model), width, y);
    const cut = cutOf(model);
    const whole = model.pipelines.filter((one) => one.stages.length === 1);
    if (large || width < NARROW) {
      for (const pipeline of cut) y = row(found, model, pipeline, width, y);
    } else if (cut.length > 0) {
      y = strips(found, model, cut, width, y);
    }
    if (whole.length > 0) y = copies(found, model, whole, width, y);
    for (const { stages } of model.pipelines) for (const stage of stages) used.add(stage.node);
    y += GAP.section;
  }
  const idle = [...store.nodes.keys()].filter((name) => !used.has(name)).sort(compareNames);
  if (idle.length > 0) {
    const shown = idle.slice(0, MOST_IDLE);
    const left = idle.length - shown.length;
    const count = left > 0 ? `${idle.length}, of which ${left} are not drawn` : String(idle.length);
    y = title(found, models.length > 0 ? "nodes without a stage" : "nodes", count, width, y);
    y = tiles(found, shown.map((node) => ({ node })), 0, width, y) + GAP.section;
  }
  found.height = Math.max(1, y - GAP.section + GAP.edge);
  return found;
}

const cutOf = (model) => model.pipelines.filter((one) => one.stages.length > 1);

function title(found, text, detail, width, y) {
  const below = width < NARROW && detail.length > 4;
  found.titles.push({ x: 0, y: y + 14, text, detail, below });
  return y + TITLE.line + (below ? TITLE.detail : 0);
}

function subtitle(model) {
  const parts = [model.state];
  if (model.generation > 0) parts.push(`generation ${model.generation}`);
  if (model.runtime) parts.push(model.runtime);
  if (model.level) parts.push(model.level);
  return parts.join(" · ");
}

function stageBoxes(model, pipeline, form) {
  const slowest = bottleneck(pipeline);
  return pipeline.stages.map((stage) => ({
    ...form,
    node: stage.node,
    model,
    pipeline,
    stage,
    slowest: stage === slowest,
  }));
}

function join(found, pipeline, model, small = false) {
  const to = found.boxes.length - 1;
  const [before, box] = [found.boxes[to - 1], found.boxes[to]];
  found.links.push({ from: to - 1, to, pipeline, model, stage: before.stage ?? null, next: box.stage ?? null, small });
}

/** A cut pipeline: jobs, its stages, answers; beside each other as far as they go, below each other on a phone. */
function row(found, model, pipeline, width, top) {
  const boxes = [
    { kind: "jobs", model, ...END },
    ...stageBoxes(model, pipeline, CARD),
    { kind: "answers", model, ...END },
  ];
  const narrow = width < NARROW;
  const left = END.width + GAP.link;
  let x = 0;
  let y = top + 6;
  boxes.forEach((box, index) => {
    const before = boxes[index - 1];
    if (before !== undefined) {
      if (narrow || x + GAP.link + box.width > width) {
        y += narrow ? before.height + GAP.narrowRow : CARD.height + GAP.row;
        x = narrow || left + box.width > width ? 0 : left;
      } else {
        x += GAP.link;
      }
    }
    box.x = x;
    // Small boxes stand in the middle of their line.
    box.y = narrow ? y : y + (CARD.height - box.height) / 2;
    x += box.width;
    found.boxes.push(box);
    if (before !== undefined) join(found, pipeline, model);
  });
  return y + (narrow ? END.height : CARD.height) + GAP.edge;
}

/** Many cut pipelines: their stages small, as many pipelines beside each other as fit. */
function strips(found, model, pipelines, width, top) {
  const longest = Math.max(...pipelines.map((one) => one.stages.length));
  const step = SMALL.width + GAP.smallLink;
  const perLine = Math.max(1, Math.min(longest, Math.floor((width + GAP.smallLink) / step)));
  const strip = perLine * step - GAP.smallLink;
  const columns = Math.max(1, Math.floor((width + GAP.column) / (strip + GAP.column)));
  const lines = Math.ceil(longest / perLine);
  const height = lines * (SMALL.height + GAP.tile) + 14;
  pipelines.forEach((pipeline, index) => {
    const x = (index % columns) * (strip + GAP.column);
    const y = top + 6 + Math.floor(index / columns) * height;
    stageBoxes(model, pipeline, SMALL).forEach((box, stage) => {
      box.x = x + (stage % perLine) * step;
      box.y = y + Math.floor(stage / perLine) * (SMALL.height + GAP.tile);
      found.boxes.push(box);
      if (stage > 0) join(found, pipeline, model, true);
    });
  });
  return top + 6 + Math.ceil(pipelines.length / columns) * height;
}

/** Whole copies of a model share one source. */
function copies(found, model, pipelines, width, top) {
  const narrow = width < NARROW;
  found.boxes.push({ kind: "jobs", model, ...END, x: 0, y: top });
  const from = found.boxes.length - 1;
  const items = pipelines.map((pipeline) => ({ node: pipeline.stages[0].node, model, pipeline, stage: pipeline.stages[0] }));
  const bottom = tiles(found, items, narrow ? 0 : END.width + 48, width, narrow ? top + END.height + GAP.row : top);
  found.links.push({ from, to: from + 1, all: true });
  return bottom;
}

function tiles(found, items, left, width, top) {
  const columns = Math.max(1, Math.floor((width - left + GAP.tile) / (SMALL.width + GAP.tile)));
  // Tiles of a line share what is left of it.
  const tileWidth = Math.min(WIDEST_TILE, (width - left + GAP.tile) / columns - GAP.tile);
  items.forEach((item, index) => {
    found.boxes.push({
      ...SMALL,
      width: tileWidth,
      x: left + (index % columns) * (tileWidth + GAP.tile),
      y: top + Math.floor(index / columns) * (SMALL.height + GAP.tile),
      slowest: false,
      ...item,
    });
  });
  return top + Math.ceil(items.length / columns) * (SMALL.height + GAP.tile);
}

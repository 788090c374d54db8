"use strict";
// The table of utterances: filters, order, word errors, players, spectrograms.

const STAGES = ["before", "after"];
const PAGE = 25;

const errorsOf = (row, stage, judge = 0) => {
  const heard = row.sides[stage] && row.sides[stage].heard[judge];
  return heard ? heard.edits[0] + heard.edits[1] + heard.edits[2] : null;
};
const has = (place) => (row) => ((row.sides.after || row.sides.before).heard[0] || { edits: [0, 0, 0] }).edits[place] > 0;
const doubt = (row) => (errorsOf(row, "after", 1) ?? 0) - (errorsOf(row, "after") ?? 0);

const KINDS = {
  all: ["all", () => true],
  improved: ["fewer errors", (row) => row.change < 0],
  worse: ["more errors", (row) => row.change > 0],
  fixed: ["wrong, now right", (row) => errorsOf(row, "before") > 0 && errorsOf(row, "after") === 0],
  broken: ["right, now wrong", (row) => errorsOf(row, "before") === 0 && errorsOf(row, "after") > 0],
  wrong: ["wrong both times", (row) => errorsOf(row, "before") > 0 && errorsOf(row, "after") > 0],
  s: ["a wrong word", has(0)],
  d: ["a missing word", has(1)],
  i: ["a word too many", has(2)],
  doubted: ["doubted by the second judge", (row) => errorsOf(row, "after") === 0 && errorsOf(row, "after", 1) > 0],
  failed: ["failed or cut off", (row) => Object.values(row.sides).some((side) => side.cut || side.problems.length)],
};
const SORTS = {
  change: ["most changed", (row) => -Math.abs(row.change ?? 0)],
  better: ["most improved", (row) => row.change ?? 0],
  worse: ["most harmed", (row) => -(row.change ?? 0)],
  errors: ["most errors after", (row) => -row.errors],
  doubt: ["most doubted by the second judge", (row) => -doubt(row)],
  longest: ["longest", (row) => -(row.seconds ?? 0)],
  id: ["id", (row) => row.id],
};

function words(heard) {
  const line = make("div", { class: "words", title: heard.text });
  heard.words.forEach(([kind, first, second], place) => {
    if (place) line.append(" ");
    if (kind === "=") line.append(first);
    else if (kind === "s") line.append(make("span", { class: "s" }, make("s", {}, first), second));
    else line.append(make(kind === "d" ? "s" : "ins", { class: kind }, first));
  });
  return line;
}

function paint(canvas, sound) {
  // Above the spectrogram (low tones below), below it F0 from 60 to 500 Hz on a logarithmic scale.
  const bytes = Uint8Array.from(atob(sound.bands), (letter) => letter.charCodeAt(0));
  const bands = 48, frames = bytes.length / bands, high = 28;
  canvas.width = frames;
  canvas.height = bands + high;
  const context = canvas.getContext("2d");
  const image = context.createImageData(frames, bands);
  const dark = matchMedia("screen and (prefers-color-scheme: dark)").matches;
  for (let frame = 0; frame < frames; frame++) {
    for (let band = 0; band < bands; band++) {
      const level = bytes[frame * bands + band] / 255;
      const shade = dark ? level : 1 - level;
      const place = 4 * ((bands - 1 - band) * frames + frame);
      image.data.set([255 * shade ** 1.4, 255 * shade ** 1.2, 255 * (0.1 + 0.9 * shade), 255], place);
    }
  }
  context.putImageData(image, 0, 0);
  context.fillStyle = colour("soft");
  context.fillRect(0, bands, frames, high);
  context.fillStyle = colour("r1");
  (sound.f0 || []).forEach((hertz, frame) => {
    if (hertz > 0) context.fillRect(frame, bands + high - 2 - (high - 4) * Math.log(hertz / 60) / Math.log(500 / 60), 1, 2);
  });
}

function player(place, sounds, longest = 0) {
  const found = [];
  const sound = sounds[place.sound];
  if (sound) {
    found.push(make("audio", { controls: "", preload: "metadata", src: sound.uri }));
    if (sound.bands) {
      const canvas = make("canvas", { role: "img", title: `spectrogram, below it F0 from 60 to 500 Hz; ${sound.seconds.toFixed(2)} s` });
      paint(canvas, sound);
      canvas.style.width = `${(100 * sound.seconds) / Math.max(longest, sound.seconds)}%`; // both sides to one scale
      found.push(canvas);
    }
  } else if (place.sound_note) {
    found.push(make("div", { class: "note" }, `no sound: ${place.sound_note}`));
  }
  return found;
}

function sideCell(side, sounds, longest) {
  if (!side) return make("td", { class: "hint" }, "not evaluated");
  const cell = make("td");
  for (const heard of side.heard) {
    if (heard.judge) cell.append(make("div", { class: "who" }, heard.judge));
    cell.append(words(heard));
  }
  for (const problem of side.problems) cell.append(make("div", { class: "note bad" }, problem));
  if (side.cut) cell.append(make("div", { class: "note bad" }, "cut off by the token budget"));
  cell.append(...player(side, sounds, longest));
  return cell;
}

function changeCell(row) {
  const cell = make("td");
  const judges = Math.max(...Object.values(row.sides).map((side) => side.heard.length));
  for (let judge = 0; judge < judges; judge++) {
    const [before, after] = STAGES.map((stage) => errorsOf(row, stage, judge));
    const tone = before === null || after === null || before === after ? "" : after < before ? "good" : "bad";
    if (judges > 1) cell.append(make("div", { class: "who" }, judge ? "second" : "training"));
    cell.append(make("div", { class: tone }, `${before ?? "–"} → ${after ?? "–"}`));
  }
  return cell;
}

function utteranceRow(row, data) {
  const seconds = row.seconds ? ` · ${row.seconds.toFixed(2)} s` : "";
  const first = make("td", {}, make("div", { class: "reference" }, row.reference),
    make("div", { class: "hint" }, `${row.id} · ${row.lang}${seconds}`));
  if (data.curves.runs.length > 1) first.append(make("div", { class: `run r${row.run % 8}` }, data.curves.runs[row.run].name));
  first.append(...player(row, data.sounds));
  const longest = Math.max(...Object.values(row.sides).map((side) => side.seconds ?? 0));
  return make("tr", {}, first, ...STAGES.map((stage) => sideCell(row.sides[stage], data.sounds, longest)), changeCell(row));
}

function fill(select, options) {
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, label]) => make("option", { value }, label)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
  select.closest("label").hidden = options.length < 2;
}

function showUtterances(data) {
  const table = document.getElementById("utterance-table");
  if (!table) return;
  const get = (name) => document.getElementById(`f-${name}`);
  const rows = data.utterances.rows;
  const judges = rows.some((row) => Object.values(row.sides).some((side) => side.heard.length > 1));
  const usual = (choices) => Object.entries(choices).filter(([name]) => judges || !name.startsWith("doubt"));
  fill(get("run"), [["", "all"], ...data.curves.runs.map((run, number) => [String(number), run.name])].slice(data.curves.runs.length > 1 ? 0 : 1));
  fill(get("lang"), [["", "all"], ...[...new Set(rows.map((row) => row.lang))].sort().map((code) => [code, code])]);
  fill(get("kind"), usual(KINDS).map(([name, [label]]) => [name, label]));
  fill(get("sort"), usual(SORTS).map(([name, [label]]) => [name, label]));
  let shown = PAGE;
  const texts = new Map(rows.map((row) => [row, [row.id, row.reference, ...Object.values(row.sides).flatMap((side) =>
    side.heard.map((heard) => heard.text))].join("\n").toLowerCase()]));

  const show = () => {
    const wanted = get("text").value.trim().toLowerCase();
    const least = Number(get("min").value || 0), most = Number(get("max").value || Infinity);
    const [, fits] = KINDS[get("kind").value] || KINDS.all;
    const [, key] = SORTS[get("sort").value] || SORTS.change;
    const run = data.curves.runs.length > 1 ? get("run").value : "";
    const found = rows.filter((row) => (run === "" || row.run === Number(run)) && (!get("lang").value || row.lang === get("lang").value)
      && (row.seconds ?? 0) >= least && (row.seconds ?? 0) <= most && fits(row) && texts.get(row).includes(wanted));
    const keys = new Map(found.map((row) => [row, key(row)]));
    found.sort((one, other) => (keys.get(one) < keys.get(other) ? -1 : keys.get(one) > keys.get(other) ? 1 : 0));
    table.tBodies[0].replaceChildren(...found.slice(0, shown).map((row) => utteranceRow(row, data)));
    get("count").textContent = `${found.length} of ${rows.length}`;
    get("more").hidden = found.length <= shown;
  };
  document.getElementById("filters").oninput = () => { shown = PAGE; show(); };
  get("more").onclick = () => { shown += PAGE; show(); };
  repaint = show;
  show();
}

let repaint = () => {};

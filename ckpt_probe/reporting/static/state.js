// Where the slider stands, and what is shown: one state, which every plot reads and only the controls change.

const positions = [...new Set(data.tracks.flatMap((track) => track.positions.filter((place) => place != null)))]
  .sort((a, b) => a - b);
const grouped = data.sections.some((section) => section.key === "differences");
const tracks = new Map(data.tracks.map((track) => [track.run, track]));
const pictured = [...new Set(data.sections.flatMap((section) => section.groups)
  .flatMap((group) => group.plots).flatMap((plot) => plot.frames ?? []).map((frame) => frame.run))];

const state = {
  at: Math.max(0, positions.length - 1),
  hiddenRuns: new Set(),
  hiddenSplits: new Set(),
  logX: null,
  run: pictured[0],
  split: null,
};

/** The number of the run's checkpoint that stands at the slider, or the last one before it; -1 where none does. */
function checkpointAt(run) {
  const places = tracks.get(run)?.positions ?? [];
  let found = -1;
  places.forEach((place, number) => {
    if (place != null && place <= positions[state.at] && (found < 0 || place >= places[found])) found = number;
  });
  return found;
}

/** The frame of a plot for the run and split that are chosen; the run's other split where it has none.
 * A plot of another group shows its run of the same seed, or else its first. */
function frameOf(plot) {
  const runs = plot.frames.map((frame) => frame.run);
  const seed = state.run?.split("/").at(-1);
  const other = grouped ? runs.find((name) => name.split("/").at(-1) === seed) ?? runs[0] : null;
  const run = runs.includes(state.run) ? state.run : other;
  const mine = plot.frames.filter((frame) => frame.run === run);
  return mine.find((frame) => frame.split === state.split) ?? mine.find((frame) => frame.split === "") ?? mine[0];
}

/** The place within a frame of the checkpoint at the slider, or of the last one before it that the frame holds. */
function momentOf(frame) {
  const wanted = checkpointAt(frame.run);
  let found = -1;
  frame.checkpoints.forEach((checkpoint, place) => { if (checkpoint <= wanted) found = place; });
  return found;
}

/** What the picture is of, in words: run, checkpoint, split. */
function momentTold(frame, moment) {
  const track = tracks.get(frame.run);
  if (moment < 0) return `${frame.run}: no checkpoint so early`;
  const name = track.checkpoints[frame.checkpoints[moment]];
  const parts = [data.tracks.length > 1 ? frame.run : "", name, frame.split].filter(Boolean);
  return parts.join(" · ");
}

/** Where the slider stands, in words. */
function placeTold() {
  if (!positions.length) return "";
  return `${data.axis.name} ${told(positions[state.at])}`;
}

function atMoment(frame, moment) {
  const size = frame.shape.slice(1).reduce((product, side) => product * side, 1);
  return numbers(frame.values).subarray(moment * size, (moment + 1) * size);
}

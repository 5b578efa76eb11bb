// The state: the position of the slider and the visible runs and splits; plots read it, and controls change it.

const positions = [...new Set(data.tracks.flatMap((track) => track.positions.filter((position) => position != null)))]
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

/** Return the index of the run's checkpoint at the slider, or of the last one before it; -1 without one. */
function checkpointAt(run) {
  const ofRun = tracks.get(run)?.positions ?? [];
  let latest = -1;
  ofRun.forEach((position, number) => {
    if (position != null && position <= positions[state.at] && (latest < 0 || position >= ofRun[latest])) latest = number;
  });
  return latest;
}

/** Return the frame of a plot for the chosen run and split; if it has none, that of the run's other split.
 * In a plot of another group, the run of the same seed, or else its first. */
function frameOf(plot) {
  const runs = plot.frames.map((frame) => frame.run);
  const seed = state.run?.split("/").at(-1);
  const other = grouped ? runs.find((name) => name.split("/").at(-1) === seed) ?? runs[0] : null;
  const run = runs.includes(state.run) ? state.run : other;
  const frames = plot.frames.filter((frame) => frame.run === run);
  return frames.find((frame) => frame.split === state.split) ?? frames.find((frame) => frame.split === "") ?? frames[0];
}

/** Return the index in a frame of the checkpoint at the slider, or of the last one before it. */
function momentOf(frame) {
  const wanted = checkpointAt(frame.run);
  let latest = -1;
  frame.checkpoints.forEach((checkpoint, position) => { if (checkpoint <= wanted) latest = position; });
  return latest;
}

/** Describe a frame at a moment: run, checkpoint, split. */
function describeFrame(frame, moment) {
  const track = tracks.get(frame.run);
  if (moment < 0) return `${frame.run}: no checkpoint so early`;
  const name = track.checkpoints[frame.checkpoints[moment]];
  const parts = [data.tracks.length > 1 ? frame.run : "", name, frame.split].filter(Boolean);
  return parts.join(" · ");
}

/** Describe the position of the slider. */
function describePosition() {
  if (!positions.length) return "";
  return `${data.axis.name} ${format(positions[state.at])}`;
}

function atMoment(frame, moment) {
  const size = frame.shape.slice(1).reduce((product, side) => product * side, 1);
  return numbers(frame.values).subarray(moment * size, (moment + 1) * size);
}

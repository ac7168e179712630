// Prometheus rows -> Grafana data frames, and the panel's field configuration applied to them.
import { applyFieldOverrides, createTheme, FieldType, getDisplayProcessor, Registry, toDataFrame } from '@grafana/data';

const OPTIONS = [
  'unit', 'decimals', 'min', 'max', 'noValue', 'mappings', 'thresholds', 'color', 'links', 'displayName',
  ...['lineWidth', 'fillBelowTo', 'fillOpacity', 'lineStyle', 'showPoints', 'pointSize', 'lineInterpolation', 'axisPlacement', 'stacking', 'hideFrom', 'cellOptions', 'width', 'align',
    'drawStyle', 'spanNulls', 'thresholdsStyle', 'scaleDistribution', 'axisSoftMin', 'axisSoftMax', 'filterable', 'inspect'].map((o) => `custom.${o}`),
];
const registry = new Registry(() =>
  OPTIONS.map((id) => ({
    id, name: id, path: id.replace('custom.', ''), isCustom: id.startsWith('custom.'),
    process: (value) => value, shouldApply: () => true, override: () => null, editor: () => null, settings: {},
  }))
);

export const legendOf = (format, metric) => {
  if (!format || format === '__auto') {
    const rest = Object.entries(metric).filter(([k]) => k !== '__name__');
    return rest.length ? `{${rest.map(([k, v]) => `${k}="${v}"`).join(', ')}}` : 'Value';
  }
  return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => metric[label] ?? '');
};
const number = (text) => (text === '+Inf' ? Infinity : text === '-Inf' ? -Infinity : Number(text));

function lines({ target, rows, step }, from, to) {
  return rows.map((row) => {
    if (target.instant) row = { ...row, values: [row.value] };
    // Every step of the range has a place, so that a gap is seen as one.
    const at = new Map(row.values.map(([t, v]) => [Math.round(t * 1000), number(v)]));
    const times = [];
    if (target.instant) times.push(...at.keys());
    else for (let t = Math.round(from * 1000); t <= to * 1000; t += step * 1000) times.push(t);
    const name = legendOf(target.legendFormat, row.metric);
    return toDataFrame({
      refId: target.refId, name,
      fields: [
        { name: 'Time', type: FieldType.time, values: times, config: {} },
        { name: 'Value', type: FieldType.number, values: times.map((t) => at.get(t) ?? null), labels: row.metric, config: { displayNameFromDS: name } },
      ],
    });
  });
}

function rowsFrame({ target, rows }, several) {
  const labels = [...new Set(rows.flatMap((r) => Object.keys(r.metric)))].filter((l) => l !== '__name__');
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: rows.map((r) => r.value[0] * 1000) },
      ...labels.map((label) => ({ name: label, type: FieldType.string, values: rows.map((r) => r.metric[label] ?? '') })),
      { name: several ? `Value #${target.refId}` : 'Value', type: FieldType.number, values: rows.map((r) => number(r.value[1])) },
    ],
  });
}

/** Frames of a panel before transformations. */
export function framesOf(answers, from, to) {
  return answers.flatMap((answer) => (answer.target.format === 'table' ? (answer.rows.length ? [rowsFrame(answer, answers.length > 1)] : []) : lines(answer, from, to)));
}

/** The field configuration of a panel applied, as the panel would get it. */
export function configured(data, panel, theme) {
  return applyFieldOverrides({
    data, fieldConfig: panel.fieldConfig, theme, timeZone: 'utc', replaceVariables: (text) => text, fieldConfigRegistry: registry,
  }).map((frame) => {
    for (const field of frame.fields) field.display ??= getDisplayProcessor({ field, theme, timeZone: 'utc' });
    return frame;
  });
}

export { createTheme };

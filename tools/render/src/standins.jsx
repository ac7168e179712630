// State timeline and heatmap, drawn from the same options, because their plugins are not published as packages.
import { getFieldDisplayName, getValueFormat, formattedValueToString } from '@grafana/data';
import { useEffect, useRef } from 'react';

const LEFT = 110, BOTTOM = 22;

function Axis({ from, to, width, top, theme, left = LEFT }) {
  const ticks = 6;
  return Array.from({ length: ticks }, (_, i) => from + ((to - from) * (i + 0.5)) / ticks).map((t) => (
    <text key={t} x={left + ((t - from) / (to - from)) * width} y={top} fontSize={11} textAnchor="middle" fill={theme.colors.text.secondary}>
      {new Date(t * 1000).toISOString().slice(11, to - from > 3600 ? 16 : 19)}
    </text>
  ));
}

/** One row for each series; neighbouring equal states are one bar. */
export function Timeline({ panel, frames, width, height, theme, job }) {
  if (!frames.length) return <div className="words" style={{ color: theme.colors.text.secondary }}>{panel.fieldConfig.defaults.noValue}</div>;
  const mappings = panel.fieldConfig.defaults.mappings.flatMap((m) => (m.type === 'value' ? Object.entries(m.options) : []));
  const states = Object.fromEntries(mappings);
  const legend = Object.values(states);
  const names = frames.map((frame) => getFieldDisplayName(frame.fields[1], frame, frames));
  const left = 20 + 7 * Math.max(...names.map((name) => name.length));
  const plot = { w: width - left - 4, h: height - BOTTOM - 24 };
  const each = plot.h / frames.length;
  const x = (ms) => left + ((ms / 1000 - job.from) / (job.to - job.from)) * plot.w;
  return (
    <svg width={width} height={height} fontFamily="Inter, sans-serif">
      {frames.map((frame, row) => {
        const [time, value] = frame.fields;
        const bars = [];
        const step = time.values[1] - time.values[0];
        value.values.forEach((v, i) => {
          const last = bars.at(-1);
          if (v === null || Number.isNaN(v)) return;
          const gap = panel.fieldConfig.defaults.custom.spanNulls || 0;
          if (last && last.v === v && time.values[i] - last.to <= Math.max(gap, step)) last.to = time.values[i] + step;
          else bars.push({ v, from: last && time.values[i] - last.to <= gap ? last.to : time.values[i], to: time.values[i] + step });
        });
        return (
          <g key={row}>
            <text x={left - 8} y={row * each + each / 2 + 4} fontSize={12} textAnchor="end" fill={theme.colors.text.primary}>{names[row]}</text>
            {bars.map((b, i) => {
              const colour = theme.visualization.getColorByName(states[String(b.v)]?.color ?? 'text');
              return <rect key={i} x={x(b.from)} y={row * each + each * 0.1} width={Math.max(1, x(Math.min(b.to, job.to * 1000)) - x(b.from))} height={each * 0.8} fill={colour} fillOpacity={0.8} />;
            })}
          </g>
        );
      })}
      <Axis from={job.from} to={job.to} width={plot.w} top={plot.h + 14} theme={theme} left={left} />
      {legend.map((state, i) => (
        <g key={state.text} transform={`translate(${8 + legend.slice(0, i).reduce((sum, s) => sum + 40 + 7 * s.text.length, 0)}, ${height - 14})`}>
          <rect width={14} height={4} y={2} fill={theme.visualization.getColorByName(state.color)} />
          <text x={20} y={8} fontSize={12} fill={theme.colors.text.primary}>{state.text}</text>
        </g>
      ))}
    </svg>
  );
}

/** Buckets of a classic histogram: cumulative series by `le` made into counts of their own. */
export function Heatmap({ panel, frames, width, height, theme, job }) {
  const canvas = useRef(null);
  const sorted = frames.map((f) => ({ le: Number(f.fields[1].labels.le.replace('+Inf', 'Infinity')), time: f.fields[0].values, sums: f.fields[1].values })).sort((a, b) => a.le - b.le);
  const counts = sorted.map((f, i) => f.sums.map((v, t) => Math.max(0, (v ?? 0) - (i ? sorted[i - 1].sums[t] ?? 0 : 0))));
  const used = sorted.map((f, i) => i).filter((i) => counts[i].some((v) => v > 1e-9));
  const [low, high] = [Math.min(...used), Math.max(...used)];
  const shown = used.length ? sorted.slice(low, high + 1) : [];
  const most = Math.max(...counts.flat(), 1e-9);
  const plot = { w: width - LEFT / 2 - 8, h: height - BOTTOM };
  useEffect(() => {
    if (!shown.length) return;
    const ctx = canvas.current.getContext('2d');
    const blue = theme.visualization.getColorByName('semi-dark-blue');
    shown.forEach((bucket, row) => {
      const values = counts[low + row];
      const each = plot.h / shown.length;
      values.forEach((v, t) => {
        if (v <= 1e-9) return;
        ctx.globalAlpha = Math.min(1, 0.08 + 0.92 * (v / most) ** panel.options.color.exponent);
        ctx.fillStyle = blue;
        const column = plot.w / values.length;
        ctx.fillRect(LEFT / 2 + t * column, plot.h - (row + 1) * each + 1, column + 0.5, each - 1);
      });
    });
  });
  if (!shown.length) return <div className="words" style={{ color: theme.colors.text.secondary }}>{panel.fieldConfig.defaults.noValue}</div>;
  const format = getValueFormat(panel.options.yAxis.unit);
  return (
    <div style={{ position: 'relative' }}>
      <canvas ref={canvas} width={width} height={height} style={{ position: 'absolute' }} />
      <svg width={width} height={height} style={{ position: 'absolute' }} fontFamily="Inter, sans-serif">
        {shown.map((bucket, row) => (
          <text key={row} x={LEFT / 2 - 6} y={plot.h - (row + 0.5) * (plot.h / shown.length) + 4} fontSize={11} textAnchor="end" fill={theme.colors.text.secondary}>
            {Number.isFinite(bucket.le) ? formattedValueToString(format(bucket.le)) : '+Inf'}
          </text>
        ))}
        <g transform={`translate(${-LEFT / 2}, 0)`}><Axis from={job.from} to={job.to} width={plot.w} top={height - 6} theme={theme} /></g>
      </svg>
    </div>
  );
}

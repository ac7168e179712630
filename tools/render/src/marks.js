// Annotations on a graph: a dashed line where one begins, a pale band as long as it lasts.
const hooked = new WeakSet();

/** Neighbouring samples of a series are one mark, as in Grafana. Returns [from, to] in milliseconds. */
function spans(row, step, valueIsTime) {
  if (valueIsTime) return [...new Set(row.values.map(([, v]) => Number(v)))].map((t) => [t, t]);
  const found = [];
  for (const [t, v] of row.values) {
    if (!(Number(v) > 0)) continue;
    const last = found.at(-1);
    if (last && t * 1000 - last[1] <= step * 1500) last[1] = t * 1000;
    else found.push([t * 1000, t * 1000]);
  }
  return found;
}

export function marked(builder, marks, theme) {
  if (hooked.has(builder)) return null;
  hooked.add(builder);
  builder.addHook('draw', (u) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (const { layer, rows, step } of marks) {
      const colour = theme.visualization.getColorByName(layer.iconColor);
      for (const [from, to] of rows.flatMap((row) => spans(row, step, layer.useValueForTime))) {
        const [left, right] = [u.valToPos(from, 'x', true), u.valToPos(to, 'x', true)];
        ctx.globalAlpha = 0.08;
        ctx.fillStyle = colour;
        if (right > left) ctx.fillRect(left, bbox.top, right - left, bbox.height);
        ctx.globalAlpha = 0.9;
        ctx.strokeStyle = colour;
        ctx.setLineDash([4, 3]);
        ctx.beginPath();
        ctx.moveTo(left, bbox.top);
        ctx.lineTo(left, bbox.top + bbox.height);
        ctx.stroke();
        ctx.globalAlpha = 1;
        ctx.fillRect(left, bbox.top + bbox.height - 4, Math.max(right - left, 6), 4);
      }
    }
    ctx.restore();
  });
  return null;
}

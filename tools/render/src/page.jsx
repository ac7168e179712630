// The page: panels at their places, drawn by @grafana/ui; state timelines and heatmaps by stand-ins, since their plugins are no packages.
import { createRoot } from 'react-dom/client';
import { cacheFieldDisplayNames, createTheme, dateTime, getFieldDisplayValues, standardTransformersRegistry, ThemeContext, transformDataFrame } from '@grafana/data';
import * as data from '@grafana/data';
import { BigValue, PanelChrome, PanelContextProvider, TimeSeries } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { configured, framesOf } from './frames.js';
import { Heatmap, Timeline } from './standins.jsx';
import { marked } from './marks.js';

window.problems = [];
const CELL = 30, GAP = 8, PAD = 16, HEAD = 72;
// The list has some transformers twice, under an old and a new name.
const transformers = new Map(Object.values(data.standardTransformers).map((t) => [t.id, t]));
standardTransformersRegistry.setInit(() => [...transformers.values()].map((t) => ({ id: t.id, name: t.name, transformation: async () => t, editor: () => null })));

const job = await (await fetch('/job.json')).json();
const theme = createTheme({ colors: { mode: job.theme } });
const range = { from: dateTime(job.from * 1000), to: dateTime(job.to * 1000), raw: { from: dateTime(job.from * 1000), to: dateTime(job.to * 1000) } };
const column = (job.width - 2 * PAD + GAP) / 24;

const Words = ({ text }) => <div className="words" style={{ color: theme.colors.text.secondary }}>{text}</div>;

function Stat({ panel, frames, width, height }) {
  const { options, fieldConfig } = panel;
  const values = frames.length ? getFieldDisplayValues({ data: frames, reduceOptions: options.reduceOptions, fieldConfig, replaceVariables: (t) => t, theme, sparkline: options.graphMode !== 'none', timeZone: 'utc' }) : [];
  if (!values.length) return <Words text={fieldConfig.defaults.noValue} />;
  const each = (width - (values.length - 1) * GAP) / values.length;
  const mode = options.textMode === 'auto' && values.length === 1 ? 'value' : options.textMode;
  return (
    <div style={{ display: 'flex', gap: GAP }}>
      {values.map((v, i) => (
        <BigValue key={i} width={each} height={height} value={{ ...v.display, title: v.display.title ?? v.name }} count={values.length} sparkline={v.sparkline} colorMode={options.colorMode} graphMode={options.graphMode} justifyMode={options.justifyMode} textMode={mode} theme={theme} wideLayout />
      ))}
    </div>
  );
}

function Lines({ panel, frames, width, height }) {
  if (!frames.length) return <Words text={panel.fieldConfig.defaults.noValue} />;
  // As the panel does it: what is no number is a gap.
  for (const frame of frames)
    for (const field of frame.fields) {
      field.config.custom ??= {};
      if (field.type === 'number') field.values = field.values.map((v) => (Number.isFinite(v) ? v : null));
    }
  return (
    <PanelContextProvider value={{ eventBus: new data.EventBusSrv(), eventsScope: 'x' }}>
      <TimeSeries frames={frames} width={width} height={height} timeRange={range} timeZone="utc" legend={panel.options.legend} options={panel.options}>
        {(builder) => marked(builder, job.marks, theme)}
      </TimeSeries>
    </PanelContextProvider>
  );
}

function Rows({ panel, frames, width, height }) {
  if (!frames.length || !frames[0].length) return <Words text={panel.fieldConfig.defaults.noValue} />;
  return <TableNG data={frames[0]} width={width} height={height} initialSortBy={panel.options.sortBy} fieldConfig={panel.fieldConfig} structureRev={1} timeRange={range} getActions={() => []} />;
}

const DRAW = { stat: Stat, timeseries: Lines, table: Rows, 'state-timeline': Timeline, heatmap: Heatmap };

function Panel({ panel, frames }) {
  const { x, y, w, h } = panel.gridPos;
  const place = { position: 'absolute', left: PAD + x * column, top: HEAD + y * (CELL + GAP), width: w * column - GAP, height: h * (CELL + GAP) - GAP };
  if (panel.type === 'row') return <div className="row" style={{ ...place, color: theme.colors.text.primary }}>{panel.collapsed ? '›' : '⌄'} {panel.title}{panel.collapsed && <small> ({panel.panels.length} panels)</small>}</div>;
  const Draw = DRAW[panel.type];
  if (!Draw) {
    window.problems.push(`${panel.title}: no drawing for type ${panel.type}`);
    return null;
  }
  return (
    <div style={place}>
      <PanelChrome title={panel.title} description={panel.description} width={place.width} height={place.height}>
        {(width, height) => <Draw panel={panel} frames={frames} width={width} height={height} theme={theme} job={job} />}
      </PanelChrome>
    </div>
  );
}

function Head() {
  const { dashboard, variables } = job;
  const time = (t) => new Date(t * 1000).toISOString().slice(0, 19).replace('T', ' ');
  return (
    <div className="head" style={{ color: theme.colors.text.primary }}>
      <div className="title">{dashboard.title}</div>
      <div className="variables">
        {dashboard.templating.list.map((v) => <span key={v.name} className="variable" style={{ background: theme.colors.background.secondary, borderColor: theme.colors.border.medium }}><b style={{ color: theme.colors.text.secondary }}>{v.label}</b>{variables[v.name] === '.+' ? 'All' : variables[v.name]}</span>)}
        {dashboard.annotations.list.filter((a) => a.expr).map((a) => <span key={a.name} className="mark"><i style={{ background: theme.visualization.getColorByName(a.iconColor) }} />{a.name}</span>)}
        <span className="time">{time(job.from)} to {time(job.to)} UTC</span>
      </div>
    </div>
  );
}

const style = document.createElement('style');
style.textContent = `
 *, *::before, *::after { box-sizing: border-box }
 body { margin: 0; background: ${theme.colors.background.canvas}; font: 14px/1.57 Inter, sans-serif; color: ${theme.colors.text.primary} }
 .head { padding: 10px ${PAD}px } .title { font-size: 18px; font-weight: 500 } .variables { display: flex; gap: 12px; align-items: center; font-size: 12px; margin-top: 2px }
 .variable { border: 1px solid; border-radius: 2px; padding: 1px 8px } .variable b { font-weight: 500; margin-right: 8px }
 .mark i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px } .time { margin-left: auto }
 .row { font-size: 16px; font-weight: 500; line-height: 30px } .row small { opacity: .6 }
 .words { display: flex; height: 100%; align-items: center; justify-content: center; text-align: center; font-size: 14px }
 button { background: none; border: 0; color: inherit; font: inherit }`;
document.head.append(style);

const panels = [];
for (const { panel, answers } of job.panels) {
  let frames = framesOf(answers, job.from, job.to);
  if (panel.transformations) frames = await new Promise((done) => transformDataFrame(panel.transformations, frames).subscribe({ next: done, error: (e) => { window.problems.push(`${panel.title}: ${e}`); done([]); } }));
  frames = panel.fieldConfig ? configured(frames, panel, theme) : frames;
  cacheFieldDisplayNames(frames);
  panels.push({ panel, frames });
}
const bottom = Math.max(...panels.map(({ panel: { gridPos: p } }) => p.y + p.h));
createRoot(document.getElementById('root')).render(
  <ThemeContext.Provider value={theme}>
    <div style={{ position: 'relative', width: job.width, height: HEAD + bottom * (CELL + GAP) + PAD }}>
      <Head />
      {panels.map((p) => <Panel key={p.panel.id} {...p} />)}
    </div>
  </ThemeContext.Provider>
);
setTimeout(() => { window.drawn = true; }, 6000);

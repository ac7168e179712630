// node render.mjs DASHBOARD.json OUT.png --prometheus URL --from UNIX --to UNIX [--var name=value] [--scrape 1] [--width 1600] [--rows 1,3]
// Draws one dashboard; exit code 1 when a query is refused, a variable is unknown or a panel cannot be drawn.
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { dirname, extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import puppeteer from 'puppeteer-core';
import { Prometheus } from './prometheus.mjs';

const { values: given, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    prometheus: { type: 'string', default: 'http://127.0.0.1:9090' },
    from: { type: 'string' },
    to: { type: 'string' },
    var: { type: 'string', multiple: true, default: [] },
    scrape: { type: 'string', default: '15' },
    width: { type: 'string', default: '1600' },
    theme: { type: 'string', default: 'dark' },
    browser: { type: 'string', default: '/usr/bin/chromium' },
    open: { type: 'boolean', default: false },
  },
});
const [file, out] = positionals;
const here = dirname(fileURLToPath(import.meta.url));
const dashboard = JSON.parse(await readFile(file, 'utf8'));
const variables = { datasource: 'prometheus', job: '.+', ...Object.fromEntries(given.var.map((v) => v.split(/=(.*)/s).slice(0, 2))) };
for (const v of dashboard.templating.list) if (!(v.name in variables)) variables[v.name] = v.type === 'textbox' ? v.query : '.+';
const source = new Prometheus(given.prometheus, Number(given.from), Number(given.to), Number(given.scrape), variables);
const problems = [];

async function answers(panel) {
  const points = Math.round((panel.gridPos.w / 24) * Number(given.width));
  return Promise.all(
    (panel.targets ?? []).map(async (target) => {
      try {
        if (target.instant) return { target, rows: await source.instant(target.expr) };
        return { target, ...(await source.range(target.expr, points)) };
      } catch (error) {
        problems.push(`${panel.title}: ${error.message}`);
        return { target, rows: [] };
      }
    })
  );
}

const shown = dashboard.panels.flatMap((p) => (p.type === 'row' && p.collapsed && given.open ? [{ ...p, collapsed: false, panels: [] }, ...p.panels] : [p]));
const panels = [];
for (const panel of shown) panels.push({ panel, answers: await answers(panel) });
const marks = [];
for (const layer of dashboard.annotations.list.filter((a) => a.expr)) {
  const { rows, step } = await source.range(layer.expr, 1000);
  marks.push({ layer, rows, step });
}
const job = { dashboard, panels, marks, variables, from: source.from, to: source.to, width: Number(given.width), theme: given.theme };

const types = { '.js': 'text/javascript', '.css': 'text/css' };
const page0 = '<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="/page.css"><div id="root"></div><script type="module" src="/page.js"></script>';
const server = createServer(async (request, response) => {
  const path = new URL(request.url, 'http://x').pathname;
  if (path === '/') return response.end(page0);
  if (path === '/job.json') return response.end(JSON.stringify(job));
  try {
    response.setHeader('content-type', types[extname(path)] ?? 'application/octet-stream');
    response.end(await readFile(join(here, 'dist', path)));
  } catch {
    response.statusCode = 404;
    response.end();
  }
}).listen(0, '127.0.0.1');
await new Promise((done) => server.once('listening', done));

const browser = await puppeteer.launch({ executablePath: given.browser, args: ['--no-sandbox', '--force-color-profile=srgb'] });
try {
  const page = await browser.newPage();
  page.on('pageerror', (error) => problems.push(`page: ${(error.stack ?? error.message ?? String(error)).slice(0, 600)}`));
  page.on('console', (message) => message.type() === 'error' && !/404/.test(message.text()) && console.error(message.text().slice(0, 400)));
  await page.setViewport({ width: Number(given.width), height: 120 + 38 * Math.max(...shown.map(({ gridPos: p }) => p.y + p.h)), deviceScaleFactor: 1 });
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.waitForFunction('window.drawn === true', { timeout: 120_000 }).catch((error) => problems.push(error.message));
  problems.push(...((await page.evaluate('window.problems')) ?? []));
  await page.screenshot({ path: out, fullPage: true });
} finally {
  await browser.close();
  server.close();
}
const empty = panels.filter(({ panel, answers: a }) => panel.targets && a.every(({ rows }) => rows.length === 0)).map(({ panel }) => panel.title);
console.log(JSON.stringify({ dashboard: dashboard.title, panels: panels.length, empty, problems }));
process.exit(problems.length ? 1 : 0);

// One bundle for the page: Grafana's packages and src/. About half a minute.
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const shim = fileURLToPath(new URL('src/scrollbars.js', import.meta.url));
const scrollbars = { name: 'scrollbars', setup: (b) => b.onResolve({ filter: /^react-custom-scrollbars-2$/ }, () => ({ path: shim })) };

await build({
  entryPoints: ['src/page.jsx'],
  bundle: true,
  format: 'esm',
  splitting: true,
  outdir: 'dist',
  jsx: 'automatic',
  minify: true,
  logLevel: 'warning',
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
  plugins: [scrollbars],
  loader: { '.svg': 'text', '.png': 'dataurl', '.woff': 'empty', '.woff2': 'empty', '.ttf': 'empty' },
});

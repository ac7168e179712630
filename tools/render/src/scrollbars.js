// Grafana's scroll bar imports this CommonJS package in a way that only some bundlers understand.
import * as all from 'react-custom-scrollbars-2/lib/index.js';

const found = all.Scrollbars ?? all.default?.Scrollbars ?? all.default?.default;
export { found as Scrollbars, found as default };

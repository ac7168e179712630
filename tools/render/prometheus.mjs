// What Grafana's data source does with a panel's queries: variables, steps, range and instant queries.

/** Seconds between two points for a panel of this width, at least the scrape interval; a round number as in Grafana. */
export function stepOf(seconds, points, scrape) {
  const wanted = Math.max(seconds / points, scrape);
  const round = [1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600];
  return round.find((r) => r >= wanted) ?? wanted;
}

/** Text with its variables filled in. An unknown variable is an error, as it would be an empty panel. */
export function filled(text, values) {
  return text.replace(/\$\{(\w+)(?::\w+)?\}|\$(\w+)/g, (all, braced, plain) => {
    const name = braced ?? plain;
    if (!(name in values)) throw new Error(`variable ${all} is not known in ${text}`);
    return values[name];
  });
}

export class Prometheus {
  constructor(url, from, to, scrape, variables) {
    Object.assign(this, { url, from, to, scrape, variables });
  }

  values(step) {
    const rate = Math.max(step + this.scrape, 4 * this.scrape);
    const range = `${Math.round(this.to - this.from)}s`;
    return { ...this.variables, __rate_interval: `${rate}s`, __interval: `${step}s`, __range: range };
  }

  async range(expr, points) {
    const step = stepOf(this.to - this.from, points, this.scrape);
    const query = filled(expr, this.values(step));
    return { step, rows: await this.ask('query_range', { query, start: this.from, end: this.to, step }) };
  }

  async instant(expr) {
    const step = stepOf(this.to - this.from, 1000, this.scrape);
    return this.ask('query', { query: filled(expr, this.values(step)), time: this.to });
  }

  async ask(path, parameters) {
    const response = await fetch(`${this.url}/api/v1/${path}`, { method: 'POST', body: new URLSearchParams(parameters) });
    const body = await response.json();
    if (body.status !== 'success') throw new Error(`${body.error}: ${parameters.query}`);
    return body.data.result;
  }
}

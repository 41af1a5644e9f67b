// The one place where preact and htm meet: templates become nodes, and what stands in ${} becomes text, never markup.
import { h, render } from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";

export const html = htm.bind(h);
export { render };

// Reads an AsyncAPI document, resolves its references, and validates it with all its examples.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const text = readFileSync(process.argv[2], "utf8");
const { document, diagnostics } = await new Parser().parse(text);
// 3.0 is what we write: tools for 3.1 are rare.
const findings = diagnostics.filter(({ code }) => code !== "asyncapi-latest-version");
for (const { code, path, message } of findings) {
  console.log(`${code} at ${path.join(".")}: ${message}`);
}
if (findings.length > 0 || !document) process.exit(1);
console.log(`${document.channels().length} channels, ${document.messages().length} messages`);

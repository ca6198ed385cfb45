// A small client that knows the interface only by the types of openapi-typescript: it compiles if they say what it does,
// and runs if they are true.
import type { components, operations } from "./openapi.js";

type NewEvent = components["schemas"]["NewEvent"];
type Event = components["schemas"]["Event"];
type Problem = components["schemas"]["Problem"];
type Answer<Operation extends keyof operations, Status extends number> = operations[Operation] extends {
  responses: { [status in Status]: { content: { "application/json": infer Body } } };
}
  ? Body
  : never;

declare const process: { argv: string[] };
const server = process.argv[2];

async function call<Body>(status: number, path: string, init: RequestInit = {}): Promise<Body> {
  const answer = await fetch(server + path, init);
  if (answer.status !== status) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return (await answer.json()) as Body;
}

function check(claim: boolean, what: string): void {
  if (!claim) throw new Error(what);
}

const wanted: NewEvent = {
  event_type: "answer_submitted",
  source: "client.ts",
  session_id: "typescript",
  payload: { answer: 8 },
};
const published = await call<Answer<"publishEvents", 201>>(201, "/events", {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(wanted),
});
check("id" in published, "one event is answered with the event");
const { id, user_id }: Event = published as Event;
check(user_id === null, "an absent user is null");

const stored = await call<Answer<"getEvent", 200>>(200, `/events/${id}`);
check(stored.payload["answer"] === 8, "the payload is what was published");

const query: NonNullable<operations["listEvents"]["parameters"]["query"]> = { session_id: "typescript", limit: 5 };
const parameters = new URLSearchParams(Object.entries(query).map(([name, value]) => [name, String(value)]));
const page = await call<Answer<"listEvents", 200>>(200, `/events?${parameters}`);
check(page[0]?.id === id, "the newest event comes first");

const { total_events, by_type } = await call<Answer<"getStats", 200>>(200, "/stats");
check(total_events > 6571 && (by_type[0]?.count ?? 0) > 0, "the class is stored");

const problem = await call<Problem>(404, "/events/evt_ffffffffffff");
check(problem.status === 404 && problem.type.endsWith("not-found"), "a problem has a type");

console.log(`client.ts published and read ${id}`);

// What the checks of JavaScript's clients share: the server, and one line a check.

import process from "node:process";

export const baseURL = process.argv[2] ?? "http://127.0.0.1:30000/v1";
export const apiKey = process.env.OPENAI_API_KEY ?? "none";

const listed = await fetch(`${baseURL}/models`, { headers: { authorization: `Bearer ${apiKey}` } });
export const model = (await listed.json()).data[0].id;

/// Of all checks together; a client that waits forever ends with an error instead.
const LIMIT_S = 600;

/// Prints one PASS or FAIL line a check; the exit code is 1 if any failed.
export async function run(checks) {
  const limit = setTimeout(() => {
    console.log(`FAIL the checks took more than ${LIMIT_S} s`);
    process.exit(1);
  }, LIMIT_S * 1000);
  let nFailed = 0;
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check();
      console.log(`PASS ${name}`);
    } catch (error) {
      nFailed += 1;
      console.log(`FAIL ${name}: ${error}`);
    }
  }
  clearTimeout(limit);
  const n = Object.keys(checks).length;
  if (nFailed > 0) {
    console.log(`${nFailed} of ${n} checks failed with model ${model}`);
    process.exit(1);
  }
  console.log(`all ${n} checks passed with model ${model}`);
}

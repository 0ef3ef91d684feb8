// Requests to this server: the key, errors with their message, and streams of events.

export const key = (kind) => sessionStorage.getItem(`engine.${kind}Key`) ?? "";
export const setKey = (kind, value) => sessionStorage.setItem(`engine.${kind}Key`, value);

class ServerError extends Error {
	constructor(status, body) {
		super(body?.error?.message ?? `HTTP ${status}`);
		this.status = status;
	}
}

export async function request(path, { body, signal, as = "api" } = {}) {
	const headers = key(as) ? { authorization: `Bearer ${key(as)}` } : {};
	const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
	if (body) headers["content-type"] = "application/json";
	const response = await fetch(path, { ...options, headers, signal, cache: "no-store" });
	if (response.ok) return response;
	throw new ServerError(response.status, await response.json().catch(() => null));
}

export const json = async (path, options) => (await request(path, options)).json();

// The chunks of a streamed answer, until `[DONE]` or the end.
export async function* stream(path, body, signal) {
	const response = await request(path, { body, signal });
	const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
	let rest = "";
	for (;;) {
		const { value, done } = await reader.read();
		if (done) return;
		const lines = (rest + value).split("\n");
		rest = lines.pop();
		for (const line of lines.filter((one) => one.startsWith("data: "))) {
			if (line === "data: [DONE]") return;
			const chunk = JSON.parse(line.slice(6));
			if (chunk.error) throw new ServerError(response.status, chunk);
			yield chunk;
		}
	}
}

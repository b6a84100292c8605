// The server, asked with the token of the page's own address.

const token = new URLSearchParams(location.search).get("token") ?? "";

async function ask(path, body) {
  const request = { headers: { "x-seamcurate-token": token } };
  if (body !== undefined) {
    request.method = "POST";
    request.body = JSON.stringify(body);
    request.headers["content-type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(`/api/${path}`, request);
  } catch {
    throw new Error("The explorer's server does not answer: was `seamcurate explore` ended?");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let said = text;
  try {
    said = JSON.parse(text).error;
  } catch {
    // not JSON: shown as it is
  }
  throw new Error(said || `the server answered ${answer.status}`);
}

export const json = async (path, body) => (await ask(path, body)).json();
export const blob = async (path, body) => (await ask(path, body)).blob();
export const bytes = async (path, body) => (await ask(path, body)).arrayBuffer();

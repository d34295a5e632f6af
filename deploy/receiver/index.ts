/**
 * A receiver for OurVidz callbacks, as an edge function: one file, no imports.
 *
 * It checks every signature it has a secret for, handles each event once, and answers in JSON.
 * See README.md for the settings and for what to replace in `record`.
 */

const settings = {
  serviceKeys: [
    Deno.env.get("SUPABASE_SERVICE_ROLE_KEY") ?? "",
    Deno.env.get("SUPABASE_SERVICE_KEY") ?? "",
    ...secretKeys(Deno.env.get("SUPABASE_SECRET_KEYS")),
  ].filter((key) => key !== ""),
  callbackSecrets: words(Deno.env.get("JOB_CALLBACK_SECRET")),
  webhookSecrets: words(Deno.env.get("OURVIDZ_WEBHOOK_SECRET")),
  toleranceSeconds: 300,
  bodyLimit: 1 << 20,
};

type Json = Record<string, unknown>;

interface Callback {
  job_id: string;
  status: "processing" | "completed" | "failed";
  sequence: number;
  assets: unknown[];
  metadata: Json;
}

class Refused extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

// ---- the part to replace: where events end up

/** Events already handled. An isolate forgets: use a table with a unique key (README.md). */
const seen = new Map<string, true>();
const SEEN_LIMIT = 10_000;

/** True the first time an event is seen. */
function claim(id: string): Promise<boolean> {
  if (seen.has(id)) return Promise.resolve(false);
  seen.set(id, true);
  if (seen.size > SEEN_LIMIT) seen.delete(seen.keys().next().value!);
  return Promise.resolve(true);
}

/** Let an event whose handling failed be delivered again. */
function unclaim(id: string): Promise<void> {
  seen.delete(id);
  return Promise.resolve();
}

/** Do something with a callback: update the job's row, tell the page. */
function record(callback: Callback): Promise<void> {
  console.log(
    JSON.stringify({
      event: "callback",
      job_id: callback.job_id,
      status: callback.status,
    }),
  );
  return Promise.resolve();
}

// ---- signatures

const utf8 = new TextEncoder();

function words(text: string | undefined): string[] {
  return (text ?? "").split(/[\s,]+/).filter((word) => word !== "");
}

/** The values of `{"name": "sb_secret_…"}`, as the platform sets it. */
function secretKeys(text: string | undefined): string[] {
  if (!text) return [];
  try {
    const keys: unknown[] = Object.values(JSON.parse(text));
    return keys.filter((key) => typeof key === "string");
  } catch {
    console.error("SUPABASE_SECRET_KEYS is not a JSON object: ignored");
    return [];
  }
}

function fromBase64(text: string): Uint8Array<ArrayBuffer> | null {
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    return null;
  }
}

function fromHex(text: string): Uint8Array<ArrayBuffer> | null {
  if (!/^(?:[0-9a-f]{2})+$/.test(text)) return null;
  return Uint8Array.from(text.match(/../g)!, (pair) => parseInt(pair, 16));
}

/** HMAC-SHA256, compared by WebCrypto in constant time. */
async function hmacHolds(
  secret: Uint8Array<ArrayBuffer>,
  signature: Uint8Array<ArrayBuffer>,
  data: Uint8Array<ArrayBuffer>,
): Promise<boolean> {
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", secret, algorithm, false, [
    "verify",
  ]);
  return await crypto.subtle.verify("HMAC", key, signature, data);
}

/** Equal texts, without telling by the time taken where they differ. */
async function sameText(ours: string, theirs: string): Promise<boolean> {
  const [a, b] = await Promise.all(
    [ours, theirs].map(async (text) =>
      new Uint8Array(await crypto.subtle.digest("SHA-256", utf8.encode(text)))
    ),
  );
  return a.reduce((found, byte, i) => found | (byte ^ b[i]), 0) === 0;
}

/**
 * One of the service keys: a secret key (`sb_…`) is sent as `apikey`, every
 * other one as a bearer token.
 */
async function serviceKeyHolds(headers: Headers): Promise<boolean> {
  for (const key of settings.serviceKeys) {
    const holds = key.startsWith("sb_")
      ? await sameText(key, headers.get("apikey") ?? "")
      : await sameText(`Bearer ${key}`, headers.get("authorization") ?? "");
    if (holds) return true;
  }
  return false;
}

async function callbackSignatureHolds(
  headers: Headers,
  body: Uint8Array<ArrayBuffer>,
): Promise<boolean> {
  const header = headers.get("x-callback-signature") ?? "";
  const signature = header.startsWith("sha256=")
    ? fromHex(header.slice("sha256=".length))
    : null;
  if (signature === null) return false;
  for (const secret of settings.callbackSecrets) {
    if (await hmacHolds(utf8.encode(secret), signature, body)) return true;
  }
  return false;
}

/** https://www.standardwebhooks.com: `v1,<base64>` signatures of `id.timestamp.body`, any of which may hold. */
async function webhookHolds(
  headers: Headers,
  body: Uint8Array<ArrayBuffer>,
): Promise<boolean> {
  const id = headers.get("webhook-id") ?? "";
  const stamp = headers.get("webhook-timestamp") ?? "";
  if (id === "" || !/^\d{1,11}$/.test(stamp)) return false;
  if (Math.abs(Date.now() / 1000 - Number(stamp)) > settings.toleranceSeconds) {
    return false;
  }
  const head = utf8.encode(`${id}.${stamp}.`);
  const signed = new Uint8Array(head.length + body.length);
  signed.set(head);
  signed.set(body, head.length);
  for (const part of (headers.get("webhook-signature") ?? "").split(" ")) {
    const signature = part.startsWith("v1,") ? fromBase64(part.slice(3)) : null;
    if (signature === null) continue;
    for (const secret of settings.webhookSecrets) {
      const key = fromBase64(secret.replace(/^whsec_/, ""));
      if (
        key !== null && key.length > 0 &&
        await hmacHolds(key, signature, signed)
      ) return true;
    }
  }
  return false;
}

/** Every check there is a secret for must hold, and there must be one. */
async function authenticate(
  headers: Headers,
  body: Uint8Array<ArrayBuffer>,
): Promise<void> {
  const checks: [boolean, string, () => Promise<boolean>][] = [
    [
      settings.serviceKeys.length > 0,
      "the service key",
      () => serviceKeyHolds(headers),
    ],
    [
      settings.callbackSecrets.length > 0,
      "X-Callback-Signature",
      () => callbackSignatureHolds(headers, body),
    ],
    [
      settings.webhookSecrets.length > 0,
      "webhook-signature",
      () => webhookHolds(headers, body),
    ],
  ];
  const wanted = checks.filter(([configured]) => configured);
  if (wanted.length === 0) {
    throw new Refused(
      500,
      "this receiver has no secret to check callbacks with",
    );
  }
  for (const [, name, holds] of wanted) {
    if (!await holds()) {
      throw new Refused(401, `${name} is missing or wrong`);
    }
  }
}

// ---- the request

async function read(request: Request): Promise<Uint8Array<ArrayBuffer>> {
  if (request.method !== "POST") throw new Refused(405, "POST only");
  const body = new Uint8Array(await request.arrayBuffer());
  if (body.length > settings.bodyLimit) {
    throw new Refused(413, "the body is too large");
  }
  return body;
}

function parse(body: Uint8Array<ArrayBuffer>): Callback {
  let found: unknown;
  try {
    found = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch {
    throw new Refused(400, "the body is not JSON");
  }
  const callback = found as Callback;
  const statuses = ["processing", "completed", "failed"];
  if (
    typeof callback?.job_id !== "string" || !statuses.includes(callback.status)
  ) {
    throw new Refused(400, "job_id and status are required");
  }
  return {
    ...callback,
    assets: Array.isArray(callback.assets) ? callback.assets : [],
    metadata: callback.metadata ?? {},
  };
}

function debug(callback: Callback): Json {
  const jobType = String(callback.metadata.job_type ?? "");
  return {
    job_id: callback.job_id,
    jobStatus: callback.status,
    jobType,
    format: callback.metadata.content_type ?? null,
    quality: jobType.includes("high") ? "high" : "fast",
    isSDXL: jobType.startsWith("sdxl_"),
    isEnhanced: jobType.includes("enhanced"),
    assetsProcessed: callback.assets.length,
    processingTimestamp: new Date().toISOString(),
  };
}

/** The idempotency key. An id that no signature covers is not believed. */
function eventId(headers: Headers, callback: Callback): string {
  return settings.webhookSecrets.length > 0
    ? headers.get("webhook-id")!
    : `${callback.job_id}:${callback.sequence}`;
}

async function handle(request: Request): Promise<Response> {
  try {
    const body = await read(request);
    await authenticate(request.headers, body);
    const callback = parse(body);
    const id = eventId(request.headers, callback);
    if (!await claim(id)) {
      return Response.json({
        success: true,
        message: "already handled",
        debug: debug(callback),
      });
    }
    try {
      await record(callback);
    } catch (failed) {
      await unclaim(id);
      throw failed;
    }
    return Response.json({
      success: true,
      message: `job ${callback.status}`,
      debug: debug(callback),
    });
  } catch (failed) {
    if (!(failed instanceof Refused)) console.error(failed);
    const status = failed instanceof Refused ? failed.status : 500;
    const message = failed instanceof Refused
      ? failed.message
      : "the callback could not be handled";
    return Response.json({ success: false, message }, { status });
  }
}

Deno.serve({
  port: Number(Deno.env.get("PORT") ?? 8000),
  onListen: ({ port }) => console.log(JSON.stringify({ listening: port })),
}, handle);

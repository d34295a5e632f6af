/**
 * A server with the Storage API of Supabase, for tests and campaigns: objects
 * in memory, resumable uploads by @tus/server.
 *
 * Requests and answers have the form of the real API, its peculiarities
 * included: most errors are 400 with the real status in the body, `_` is a
 * wildcard in listings, a move replaces nothing. A second port makes it fail.
 */

import { Buffer } from "node:buffer";
import { FileStore } from "@tus/file-store";
import { Server } from "@tus/server";

const SECRET_KEY = Deno.env.get("SECRET_KEY") ?? "";
const LEGACY_KEY = Deno.env.get("LEGACY_KEY") ?? "";
const PREFIX = "/storage/v1";
const CHUNK = 6 * 1024 * 1024;

type Json = Record<string, unknown>;

interface Stored {
  id: string;
  data: Uint8Array<ArrayBuffer>;
  type: string;
  cache: string;
  modified: string;
}

const buckets = new Map<string, Map<string, Stored>>();

class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly error: string,
    message: string,
  ) {
    super(message);
  }

  /** Fields that @tus/server answers with: resumable uploads use real codes. */
  get status_code(): number {
    return this.status;
  }

  get body(): string {
    return this.message;
  }
}

function bucketOf(name: string): Map<string, Stored> {
  const bucket = buckets.get(name);
  if (!bucket) throw new ApiError(404, "Bucket not found", "Bucket not found");
  return bucket;
}

function objectOf(bucket: string, name: string): Stored {
  const stored = bucketOf(bucket).get(name);
  if (!stored) throw new ApiError(404, "not_found", "Object not found");
  return stored;
}

function store(
  bucket: string,
  name: string,
  stored: Omit<Stored, "id" | "modified">,
  upsert: boolean,
): void {
  const objects = bucketOf(bucket);
  const existing = objects.get(name);
  if (existing && !upsert) throw duplicate();
  if (!/^(\w|\/|!|-|\.|\*|'|\(|\)| |&|\$|@|=|;|:|\+|,|\?)+$/.test(name)) {
    throw new ApiError(400, "InvalidKey", `Invalid key: ${name}`);
  }
  const id = existing?.id ?? crypto.randomUUID();
  objects.set(name, { ...stored, id, modified: new Date().toISOString() });
}

const duplicate = () =>
  new ApiError(409, "Duplicate", "The resource already exists");

// ---- who may call

/** The gateway refuses an unknown apikey, the API a bearer token that is no JWT. */
function authorize(headers: Headers): Response | null {
  const apikey = headers.get("apikey");
  if (apikey !== SECRET_KEY && apikey !== LEGACY_KEY) {
    const hint = "Double check your Supabase `anon` or `service_role` API key.";
    return Response.json({ message: "Invalid API key", hint }, { status: 401 });
  }
  const bearer = headers.get("authorization")?.replace(/^Bearer /, "");
  if (bearer !== undefined ? bearer !== LEGACY_KEY : apikey !== SECRET_KEY) {
    throw new ApiError(403, "Unauthorized", "Invalid Compact JWS");
  }
  return null;
}

const signingKey = await crypto.subtle.generateKey(
  { name: "HMAC", hash: "SHA-256" },
  false,
  ["sign", "verify"],
);

async function sign(url: string, expiresIn: number): Promise<string> {
  const exp = Math.floor(Date.now() / 1000) + expiresIn;
  const claims = Buffer.from(JSON.stringify({ url, exp })).toString(
    "base64url",
  );
  const mac = await crypto.subtle.sign("HMAC", signingKey, Buffer.from(claims));
  return `${claims}.${Buffer.from(mac).toString("base64url")}`;
}

async function verify(token: string, url: string): Promise<void> {
  const [claims, mac] = token.split(".");
  const holds = await crypto.subtle.verify(
    "HMAC",
    signingKey,
    Buffer.from(mac ?? "", "base64url"),
    Buffer.from(claims),
  );
  if (!holds) throw new ApiError(400, "InvalidJWT", "signature does not hold");
  const signed = JSON.parse(Buffer.from(claims, "base64url").toString());
  if (signed.url !== url || signed.exp < Date.now() / 1000) {
    throw new ApiError(400, "InvalidJWT", '"exp" claim timestamp check failed');
  }
}

// ---- resumable uploads

const folder = await Deno.makeTempDir({ prefix: "ourvidz-supabase-" });

const tus = new Server({
  path: `${PREFIX}/upload/resumable`,
  datastore: new FileStore({ directory: folder }),
  onUploadCreate(_request, upload) {
    bucketOf(upload.metadata?.bucketName ?? "");
    return Promise.resolve({});
  },
  async onUploadFinish(request, upload) {
    const { bucketName, objectName, contentType } = upload.metadata ?? {};
    const data = await Deno.readFile(`${folder}/${upload.id}`);
    store(
      bucketName ?? "",
      objectName ?? "",
      { data, type: contentType ?? "", cache: "no-cache" },
      request.headers.get("x-upsert") === "true",
    );
    return {};
  },
});

/** Parts are stored as they arrive, and all but the last must have one size. */
function checkChunk(request: Request): void {
  if (request.method !== "PATCH") return;
  const size = Number(request.headers.get("content-length"));
  if (size > CHUNK) {
    throw new ApiError(413, "EntityTooLarge", "chunk too large");
  }
}

// ---- the routes

function range(request: Request, stored: Stored): Response {
  const all = stored.data;
  const headers = {
    "Content-Type": stored.type,
    "Cache-Control": stored.cache,
    "Last-Modified": new Date(stored.modified).toUTCString(),
    ETag: `"${stored.id}-${stored.modified}"`,
    "Accept-Ranges": "bytes",
  };
  const asked = /^bytes=(\d+)-(\d*)$/.exec(request.headers.get("range") ?? "");
  if (!asked) return new Response(all, { headers });
  const start = Number(asked[1]);
  const end = Math.min(asked[2] ? Number(asked[2]) : Infinity, all.length - 1);
  if (start > end) {
    throw new ApiError(
      416,
      "InvalidRange",
      "The requested range is not satisfiable",
    );
  }
  return new Response(all.slice(start, end + 1), {
    status: 206,
    headers: {
      ...headers,
      "Content-Range": `bytes ${start}-${end}/${all.length}`,
    },
  });
}

/** A name that SQL's `ILIKE prefix%` matches: `_` is any character, and case does not count. */
function like(prefix: string): RegExp {
  const escaped = prefix.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const pattern = escaped.replaceAll("_", ".").replaceAll("%", ".*");
  return new RegExp(`^${pattern}`, "i");
}

function list(bucket: string, body: Json): Json {
  const prefix = String(body.prefix ?? "");
  const limit = Math.min(Number(body.limit ?? 1000), 1000);
  const after = body.cursor ? atob(String(body.cursor)) : "";
  const pattern = like(prefix);
  const names = [...(buckets.get(bucket)?.keys() ?? [])].filter((name) =>
    pattern.test(name)
  ).sort();
  const entries = new Set(
    names.map((name) => {
      const slash = body.with_delimiter ? name.indexOf("/", prefix.length) : -1;
      return slash < 0 ? name : name.slice(0, slash + 1);
    }),
  );
  const page = [...entries].sort().filter((name) => name > after);
  const shown = page.slice(0, limit);
  const objects = shown.filter((name) => !name.endsWith("/")).map((name) => {
    const stored = buckets.get(bucket)!.get(name)!;
    return {
      id: stored.id,
      name,
      updated_at: stored.modified,
      created_at: stored.modified,
      metadata: { size: stored.data.length, mimetype: stored.type },
    };
  });
  const folders = shown.filter((name) => name.endsWith("/")).map((name) => ({
    id: null,
    name,
  }));
  const hasNext = page.length > limit;
  const nextCursor = hasNext ? btoa(shown[shown.length - 1]) : undefined;
  return { hasNext, nextCursor, objects, folders };
}

async function upload(
  request: Request,
  bucket: string,
  name: string,
): Promise<Response> {
  bucketOf(bucket);
  const stored = {
    data: new Uint8Array(await request.arrayBuffer()),
    type: request.headers.get("content-type") ?? "application/octet-stream",
    cache: request.headers.get("cache-control") ?? "no-cache",
  };
  store(bucket, name, stored, request.headers.get("x-upsert") === "true");
  return Response.json({
    Id: objectOf(bucket, name).id,
    Key: `${bucket}/${name}`,
  });
}

async function transfer(request: Request, moves: boolean): Promise<Response> {
  const body = await request.json();
  const target = body.destinationBucket ?? body.bucketId;
  const source = objectOf(body.bucketId, body.sourceKey);
  const upsert = !moves && request.headers.get("x-upsert") === "true";
  store(target, body.destinationKey, source, upsert);
  if (!moves) return Response.json({ Key: `${target}/${body.destinationKey}` });
  bucketOf(body.bucketId).delete(body.sourceKey);
  return Response.json({ message: "Successfully moved" });
}

async function signAll(request: Request, bucket: string): Promise<Response> {
  const { paths, expiresIn } = await request.json();
  return Response.json(
    await Promise.all(paths.map(async (path: string) => {
      const exists = buckets.get(bucket)?.has(path);
      const url = `${bucket}/${path}`;
      return {
        error: exists ? null : "Either the object does not exist or …",
        path,
        signedURL: exists
          ? `/object/sign/${url}?token=${await sign(url, expiresIn)}`
          : null,
      };
    })),
  );
}

async function remove(request: Request, bucket: string): Promise<Response> {
  const { prefixes } = await request.json();
  const objects = bucketOf(bucket);
  const deleted = prefixes.filter((name: string) => objects.delete(name));
  return Response.json(deleted.map((name: string) => ({ name })));
}

async function bucketRoute(request: Request): Promise<Response> {
  if (request.method === "GET") {
    return Response.json(
      [...buckets.keys()].map((id) => ({ id, name: id, public: false })),
    );
  }
  const { id, name } = await request.json();
  if (buckets.has(id ?? name)) throw duplicate();
  buckets.set(id ?? name, new Map());
  return Response.json({ name });
}

function route(request: Request, path: string): Promise<Response> | Response {
  const [, area, ...rest] = path.split("/");
  if (area === "bucket") return bucketRoute(request);
  const [first, second] = rest;
  const after = (count: number) => rest.slice(count).join("/");
  switch (`${request.method} ${first}`) {
    case "POST copy":
      return transfer(request, false);
    case "POST move":
      return transfer(request, true);
    case "POST sign":
      return signAll(request, second);
    case "POST list-v2":
      return request.json().then((body) => Response.json(list(second, body)));
    case "GET authenticated":
      return range(request, objectOf(second, after(2)));
    case "GET info": {
      const stored = objectOf(second, after(2));
      return Response.json({
        id: stored.id,
        name: after(2),
        bucket_id: second,
        size: stored.data.length,
        content_type: stored.type,
        cache_control: stored.cache,
        last_modified: stored.modified,
        created_at: stored.modified,
      });
    }
  }
  if (request.method === "DELETE") return remove(request, first);
  if (request.method === "POST") return upload(request, first, after(1));
  throw new ApiError(404, "Not Found", `Route ${path} not found`);
}

// ---- failures on demand

interface Fault {
  method: string;
  path: string;
  status: number;
  left: number;
}

const faults: Fault[] = [];
const seen: string[] = [];

let overloaded = false;

async function control(request: Request): Promise<Response> {
  switch (new URL(request.url).pathname) {
    case "/faults":
      faults.push(await request.json());
      break;
    case "/expire":
      for await (const entry of Deno.readDir(folder)) {
        await Deno.remove(`${folder}/${entry.name}`);
      }
      break;
    case "/overload":
      overloaded = await request.json();
      break;
    case "/cut":
      stop.abort();
      await served.finished;
      serve();
      break;
    case "/keys":
      return Response.json(
        [...buckets].flatMap(([bucket, objects]) =>
          [...objects.keys()].map((name) => `${bucket}/${name}`)
        ),
      );
  }
  return Response.json(seen);
}

function fault(request: Request, path: string): Response | null {
  if (overloaded) {
    return Response.json({ message: "not now" }, { status: 503 });
  }
  const found = faults.find((each) =>
    each.left > 0 &&
    each.method === request.method &&
    path.startsWith(each.path)
  );
  if (!found) return null;
  found.left -= 1;
  return Response.json({ message: "not now" }, { status: found.status });
}

async function answer(request: Request, path: string): Promise<Response> {
  const failed = fault(request, path);
  if (failed) return failed;
  const signed = /^\/object\/sign\/(.+)$/.exec(path);
  if (request.method === "GET" && signed) {
    const token = new URL(request.url).searchParams.get("token") ?? "";
    await verify(token, signed[1]);
    const [bucket, ...name] = signed[1].split("/");
    return range(request, objectOf(bucket, name.join("/")));
  }
  const refused = authorize(request.headers);
  if (refused) return refused;
  if (path.startsWith("/upload/resumable")) {
    checkChunk(request);
    return await tus.handleWeb(request);
  }
  return await route(request, path);
}

async function handle(request: Request): Promise<Response> {
  const { pathname } = new URL(request.url);
  const path = decodeURIComponent(pathname.slice(PREFIX.length));
  seen.push(`${request.method} ${path}`);
  try {
    if (!pathname.startsWith(PREFIX)) {
      return Response.json({ message: "no route" }, { status: 404 });
    }
    return await answer(request, path);
  } catch (failed) {
    if (!(failed instanceof ApiError)) {
      console.error(failed);
      return Response.json({ statusCode: "500", error: "Internal" }, {
        status: 500,
      });
    }
    const resumable = path.startsWith("/upload/resumable");
    const { status, error, message } = failed;
    return Response.json(
      { statusCode: String(status), error, message },
      { status: resumable || status === 500 ? status : 400 },
    );
  }
}

let port = Number(Deno.env.get("PORT") ?? 0);
let stop: AbortController;
let served: Deno.HttpServer<Deno.NetAddr>;
serve();

function serve(): void {
  stop = new AbortController();
  const onListen = (address: Deno.NetAddr) => {
    port = address.port;
  };
  const options = {
    hostname: "127.0.0.1",
    port,
    signal: stop.signal,
    onListen,
  };
  served = Deno.serve(options, handle);
}

Deno.serve({
  hostname: "127.0.0.1",
  port: 0,
  onListen: (address) =>
    console.log(JSON.stringify({ listening: port, control: address.port })),
}, control);

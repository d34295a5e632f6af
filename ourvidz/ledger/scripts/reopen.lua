-- Queue a failed or cancelled job again as its next run, at the end of the queue. The fence goes on.
-- Arguments: id, priority, token, limits (JSON that the run is held to, or '').
-- Keys: job, doc, order, stream, finished, documents, queued, call, allowance, waiting.
-- Returns: { 'ok', the record, the standings of its allowances }, or { the reason }: 'missing', 'document' (it is no
--   longer stored), 'deleting' for a job that is being deleted; { the status that forbids it, the record }; or
--   { 'limited', nothing, why a limit refuses it }.
-- Events: a `state` item.
local id, priority, token, limits = unpack(ARGV, 4)

local job = read_record(id)
if not job then return { 'missing' } end
if memoized(token) then return { 'ok', flat_record(id), {} } end
if job.deleting then return { 'deleting' } end
if job.status ~= 'failed' and job.status ~= 'cancelled' then return { job.status, flat_record(id) } end
if redis.call('EXISTS', key('doc', id)) == 0 then return { 'document' } end
local standings, refused = admit_run(limits, id, job.queue)
if refused then return { 'limited', {}, standings } end
local name = key('job', id)
for field in pairs(job) do
  if string.sub(field, 1, 2) == 'f:' then redis.call('HDEL', name, field) end
end
redis.call('HDEL', name, 'outcome', 'cancel', 'lifted', 'claimed_at', 'finished_at', 'published_at',
  'stage', 'worker', 'step', 'token', 'streamed', 'wording', 'alone', 'shared')
if job.enhancement then redis.call('HSET', name, 'enhancement', 'wanted') end
local order, at = next_order(), timestamp(now)
job.run, job.stage = redis.call('HINCRBY', name, 'run', 1), nil
redis.call('HSET', name, 'status', 'queued', 'attempt', 0, 'priority', priority, 'order', order,
  'queued_at', at, 'due_at', at, 'publishes', 0, 'progress', 0)
for _, kind in ipairs({ 'job', 'doc', 'stream' }) do redis.call('PERSIST', key(kind, id)) end
redis.call('ZREM', key('finished'), id)
redis.call('ZREM', key('documents'), id)
redis.call('ZADD', key('queued', job.queue), queue_score(priority, order), id)
add_state_item(id, job, 'queued', 0)
memoize(token, 'ok')
return { 'ok', flat_record(id), standings }

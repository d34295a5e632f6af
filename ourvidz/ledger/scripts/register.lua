-- Register a new job as queued: run 1, attempt 0, a new fence, due now; and publish its message, if there is one.
-- Changes nothing when the id is taken.
-- Arguments: id, type, queue, user, priority, fingerprint, callback_url, facts (JSON), document (JSON), token,
--   quiet, one_shot, enhancement (each '' or the value of the record's field), request (what the caller sent, to
--   be compared), version (of the record, the lowest that can handle it), list (of the broker; '' for none),
--   message (what is added to it), bucket (that the job stores its files in, or ''), limits (JSON that a new job is
--   held to, or '').
-- Keys: job, doc, order, fence, queued, index:all, index:user, call, the broker's list, allowance, waiting.
-- Returns: { 1 for a new job or 0, the record, the job's place in its queue: 0 for the next to start, or -1, the
--   standings of its allowances, or why a limit refuses it: then there is no record }.
-- Events: none; readers of its stream find the state in the record.
local id, type, queue, user, priority, fingerprint, callback_url, facts, document, token = unpack(ARGV, 4, 13)
local quiet, one_shot, enhancement, request, version, list, message, bucket, limits = unpack(ARGV, 14)

local function answer(created, standings)
  local fields = flat_record(id)
  local queued_in = redis.call('HGET', key('job', id), 'queue')
  local place = queued_in and redis.call('ZRANK', key('queued', queued_in), id) or -1
  return { created, fields, place, standings }
end

if memoized(token) then return answer(1, {}) end
if redis.call('EXISTS', key('job', id)) == 1 then return answer(0, {}) end
local standings, refused = admit_run(limits, id, queue)
if refused then return { 0, {}, -1, standings } end
local order = next_order()
local at = timestamp(now)
local job = {
  v = version, type = type, queue = queue, status = 'queued', run = 1, attempt = 0, seq = 0, fence = next_fence(),
  priority = priority, order = order, created_at = at, queued_at = at, due_at = at, publishes = 0,
  progress = 0, fingerprint = fingerprint, request = request, facts = facts,
}
if user ~= '' then job.user = user end
if callback_url ~= '' then job.callback_url = callback_url end
if quiet ~= '' then job.quiet = quiet end
if one_shot ~= '' then job.one_shot = one_shot end
if enhancement ~= '' then job.enhancement = enhancement end
if bucket ~= '' then job.bucket = bucket end
if list ~= '' then job.published_at, job.publishes = at, 1 end
local fields = {}
for name, value in pairs(job) do
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end
redis.call('HSET', key('job', id), unpack(fields))
redis.call('SET', key('doc', id), document)
redis.call('ZADD', key('queued', queue), queue_score(priority, order), id)
redis.call('ZADD', key('index:all'), order, id)
if user ~= '' then redis.call('ZADD', key('index', 'user', user), order, id) end
memoize(token, 'created')
if list ~= '' then redis.call('LPUSH', list, message) end
return answer(1, standings)

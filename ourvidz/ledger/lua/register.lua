local id, type, queue, user, priority, fingerprint, callback_url, facts, document, token = unpack(ARGV, 4, 13)
local quiet, one_shot, enhancement = unpack(ARGV, 14)
local known = flat(id)
if said_before(token) then return { 1, known } end
if #known > 0 then return { 0, known } end
local order = redis.call('INCR', key('order'))
local at = stamp(now)
local job = {
  v = KNOWN, type = type, queue = queue, status = 'queued', run = 1, attempt = 0, fence = 0, seq = 0,
  priority = priority, order = order, created_at = at, queued_at = at, due_at = at, publishes = 0,
  progress = 0, fingerprint = fingerprint, facts = facts,
}
if user ~= '' then job.user = user end
if callback_url ~= '' then job.callback_url = callback_url end
if quiet ~= '' then job.quiet = quiet end
if one_shot ~= '' then job.one_shot = one_shot end
if enhancement ~= '' then job.enhancement = enhancement end
local fields = {}
for name, value in pairs(job) do
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end
redis.call('HSET', key('job', id), unpack(fields))
redis.call('SET', key('doc', id), document)
redis.call('ZADD', key('queued', queue), rank(priority, order), id)
redis.call('ZADD', key('index:all'), order, id)
if user ~= '' then redis.call('ZADD', key('index', 'user', user), order, id) end
state_item(id, job, 'queued', 0)
say(token, 'created')
return { 1, flat(id) }

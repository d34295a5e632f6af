-- The outbox: one hash an event at `event:<id>`. `rows:<job>` holds a job's pending events by sequence,
-- `letters:<state>` all events of a state by time, `due` the jobs with a pending event by the time at which
-- its oldest one may be delivered. `ready` is the list that io processes wait for: jobs whose oldest event is due, each
-- with its callback URL. An entry may be lost, superfluous or repeated; `due` decides.

-- Entries of `ready` at most: without an io process it would grow. `announce_due` brings the others.
local MAX_READY = 1000

-- The oldest pending event of a job, nil when nothing is pending. Ids without an event are removed.
local function oldest_event(id)
  local rows = key('rows', id)
  while true do
    local event = redis.call('ZRANGE', rows, 0, 0)[1]
    if not event or redis.call('EXISTS', key('event', event)) == 1 then return event end
    redis.call('ZREM', rows, event)
  end
end

-- The number of announced jobs. A key of another kind is removed: no claim and no end may fail because of a hint.
local function announced()
  local length = redis.pcall('LLEN', key('ready'))
  if type(length) == 'number' then return length end
  redis.call('DEL', key('ready'))
  return 0
end

-- Tell the io processes that the oldest event of a job is due.
local function announce(id, callback_url)
  if announced() < MAX_READY then
    redis.call('RPUSH', key('ready'), cjson.encode({ id, callback_url or nil }))
  end
end

-- Note in `due` when the oldest pending event of a job may be leased. Returns its callback URL (false for the default
-- one) if it is due now, else nil.
local function note_due(id)
  local head = oldest_event(id)
  if not head then
    redis.call('ZREM', key('due'), id)
    return nil
  end
  local row = redis.call('HMGET', key('event', head), 'due_at', 'lease_until', 'callback_url')
  local due = math.max(tonumber(row[1] or 0) or 0, tonumber(row[2] or 0) or 0)
  redis.call('ZADD', key('due'), timestamp(due), id)
  if due <= now then return row[3] end
  return nil
end

-- Note when the oldest pending event of a job may be leased; announce it if that is now.
local function schedule_job(id)
  local callback_url = note_due(id)
  if callback_url ~= nil then announce(id, callback_url) end
end

-- Jobs with an event that is due and not leased, most overdue first. Of more than `limit` any stretch that wraps
-- around: the events of a receiver that hangs must not stay in front of all others.
local function due_jobs(limit)
  local function read(first, count)
    local offset = string.format('%.0f', first)
    return redis.call('ZRANGEBYSCORE', key('due'), '-inf', timestamp(now), 'LIMIT', offset, count)
  end
  local count = redis.call('ZCOUNT', key('due'), '-inf', timestamp(now))
  if count <= limit then return read(0, limit) end
  local ids = read(math.floor(now * 1e6) % count, limit)
  for _, id in ipairs(read(0, limit - #ids)) do ids[#ids + 1] = id end
  return ids
end

-- Lease the oldest pending event of a job for one delivery, if it is due and not leased: deliveries + 1. The same token
-- gets the same lease again. Returns { event id, its hash }, or false.
local function lease_oldest(id, lease_s, token)
  local event = oldest_event(id)
  if not event then
    redis.call('ZREM', key('due'), id)
    return false
  end
  local name = key('event', event)
  local row = read_hash(name)
  if row.taken_by ~= token then
    if tonumber(row.due_at) > now or tonumber(row.lease_until or 0) > now then return false end
    redis.call('HSET', name, 'lease_until', timestamp(now + tonumber(lease_s)), 'taken_by', token)
    redis.call('HINCRBY', name, 'deliveries', 1)
    note_due(id)
  end
  return { event, redis.call('HGETALL', name) }
end

local function delete_event(event)
  for _, state in ipairs({ 'pending', 'delivered', 'dead' }) do
    redis.call('ZREM', key('letters', state), event)
  end
  redis.call('DEL', key('event', event))
end

-- Delete the progress events of a job that nobody is delivering: a newer event replaces them.
local function delete_pending_progress(id)
  for _, event in ipairs(redis.call('ZRANGE', key('rows', id), 0, -1)) do
    local row = redis.call('HMGET', key('event', event), 'metadata', 'lease_until')
    if row[1] and tonumber(row[2] or 0) <= now then
      redis.call('ZREM', key('rows', id), event)
      delete_event(event)
    end
  end
end

-- Store a pending event of a kind ('processing' or the terminal status), due now. Returns its id.
local function store_event(id, job, seq, kind, outcome, metadata)
  local event = 'msg_' .. string.sub(redis.sha1hex(table.concat({ id, job.order, job.run, seq }, '\0')), 1, 32)
  local row = {
    'job', id, 'run', job.run, 'seq', seq, 'kind', kind, 'attempt', job.attempt, 'at', timestamp(now),
    'queued_at', job.queued_at, 'facts', job.facts, 'state', 'pending', 'due_at', timestamp(now),
    'deliveries', 0,
  }
  local optional = {
    claimed_at = job.claimed_at, worker = job.worker, callback_url = job.callback_url, outcome = outcome,
    metadata = metadata, refused = job.refused,
  }
  for name, value in pairs(optional) do
    row[#row + 1] = name
    row[#row + 1] = value
  end
  redis.call('HSET', key('event', event), unpack(row))
  redis.call('ZADD', key('rows', id), seq, event)
  redis.call('ZADD', key('letters', 'pending'), timestamp(now), event)
  local callback_url = note_due(id)
  -- Behind an older event it is delivered with that one.
  if callback_url ~= nil and oldest_event(id) == event then announce(id, callback_url) end
  return event
end

-- Add an event as `store_event` does, with the next sequence number of its job. Returns its id, or nil for a job whose
-- callbacks are suppressed.
local function add_event(id, job, kind, outcome, metadata)
  if job.quiet then return nil end
  delete_pending_progress(id)
  return store_event(id, job, redis.call('HINCRBY', key('job', id), 'seq', 1), kind, outcome, metadata)
end

-- Move an event out of `pending`: into `state` with the HTTP status of its last delivery, or delete it when
-- `state` is nil. The caller then leases the next event of the job, or schedules the job.
local function settle_event(event, row, state, status)
  redis.call('ZREM', key('rows', row.job), event)
  redis.call('ZREM', key('letters', 'pending'), event)
  local name = key('event', event)
  if state then
    redis.call('ZADD', key('letters', state), timestamp(now), event)
    redis.call('HSET', name, 'state', state, 'settled_at', timestamp(now), 'last_status', status)
    redis.call('HDEL', name, 'lease_until', 'taken_by')
  else
    redis.call('DEL', name)
  end
end

-- After a delivery that is settled: with a token, lease the next event of the job as `lease_oldest` does; without one
-- announce it.
local function continue_with(id, lease_s, token)
  if token ~= '' then
    local leased = lease_oldest(id, lease_s, token)
    if not leased then note_due(id) end
    return leased
  end
  schedule_job(id)
  return false
end

-- The live stream of a job at `stream:<id>`: what its readers follow. It is created with the first item after the state
-- `queued` of a new job, which readers make of the record until then: a stream takes 4 KiB from its first item on.

local STREAM_ITEMS = 500
-- Longest stream, in items and bytes, that is written anew at its end.
local SHORT_ITEMS, SHORT_BYTES = 50, 4096

-- Begin the stream of a new job with the state `queued` at the time of its registration.
local function begin_stream(id)
  local job = redis.call('HMGET', key('job', id), 'created_at', 'run')
  if job[2] ~= '1' then return end
  redis.call('XADD', key('stream', id), string.format('%.0f-0', math.floor(tonumber(job[1]) * 1000)), 'k', 'state',
    'status', 'queued', 'run', 1, 'attempt', 0, 'stage', '')
end

-- Append an item of a kind, with fields and values, and announce it on the channel of the stream's name; old
-- items are trimmed. Returns the item's id. A user without the right to publish only makes followers poll.
local function add_item(id, kind, ...)
  if redis.call('EXISTS', key('stream', id)) == 0 then begin_stream(id) end
  local item = redis.call('XADD', key('stream', id), 'MAXLEN', '~', STREAM_ITEMS, '*', 'k', kind, ...)
  redis.pcall('PUBLISH', key('stream', id), '')
  return item
end

local function add_state_item(id, job, status, attempt)
  add_item(id, 'state', 'status', status, 'run', job.run, 'attempt', attempt, 'stage', job.stage or '')
end

-- Keep a stream that gets no more items for so many seconds. Written anew it takes no more memory than it needs; a user
-- without the right to `restore` leaves it as it is.
local function end_stream(id, keep_s)
  local name = key('stream', id)
  if redis.call('XLEN', name) <= SHORT_ITEMS then
    local stored = redis.pcall('DUMP', name)
    if type(stored) == 'string' and #stored <= SHORT_BYTES then
      redis.pcall('RESTORE', name, 0, stored, 'REPLACE')
    end
  end
  redis.call('EXPIRE', name, keep_s)
end

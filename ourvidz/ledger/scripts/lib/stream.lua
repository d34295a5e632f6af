-- The live stream of a job at `stream:<id>`: what its readers follow.

local STREAM_ITEMS = 500

-- Append an item of a kind, with fields and values, and announce it on the channel of the stream's name; old
-- items are trimmed. Returns the item's id. A user without the right to publish only makes followers poll.
local function add_item(id, kind, ...)
  local item = redis.call('XADD', key('stream', id), 'MAXLEN', '~', STREAM_ITEMS, '*', 'k', kind, ...)
  redis.pcall('PUBLISH', key('stream', id), '')
  return item
end

local function add_state_item(id, job, status, attempt)
  add_item(id, 'state', 'status', status, 'run', job.run, 'attempt', attempt, 'stage', job.stage or '')
end

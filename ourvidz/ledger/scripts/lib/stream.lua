-- The live stream of a job at `stream:<id>`: what its readers follow.

local STREAM_ITEMS = 500

-- Append an item of a kind, with fields and values; old items are trimmed. Returns the item's id.
local function add_item(id, kind, ...)
  return redis.call('XADD', key('stream', id), 'MAXLEN', '~', STREAM_ITEMS, '*', 'k', kind, ...)
end

local function add_state_item(id, job, status, attempt)
  add_item(id, 'state', 'status', status, 'run', job.run, 'attempt', attempt, 'stage', job.stage or '')
end

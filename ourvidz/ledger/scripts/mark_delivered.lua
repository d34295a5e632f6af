-- Note that the receiver accepted an event. A `processing` event is deleted, a terminal one kept for operators.
-- Arguments: event, status (HTTP), keep_s.
-- Keys: event, rows, letters, due, counters.
-- Returns: 1, or 0 when the event is not pending.
-- Events: none.
local event, status, keep_s = unpack(ARGV, 4)

local name = key('event', event)
local row = read_hash(name)
if not row or row.state ~= 'pending' then return 0 end
increment('callbacks.delivered')
if row.kind == 'processing' then
  settle_event(event, row)
else
  settle_event(event, row, 'delivered', status)
  redis.call('EXPIRE', name, keep_s)
end
return 1

-- Note that the receiver accepted an event. A `processing` event is deleted, and so is the `updated` one of a registration,
-- which is sent again and again; a terminal one is kept for operators. With a token the next event of the job is leased in
-- the same call, if it is due.
-- Arguments: event, job, status (HTTP), keep_s, lease_s, token ('' leases nothing).
-- Keys: event, rows, letters, due, ready, counters.
-- Returns: { event id, its hash } of the event that was leased, or false.
-- Events: none.
local event, job, status, keep_s, lease_s, token = unpack(ARGV, 4)

local name = key('event', event)
local row = read_hash(name)
if row and row.state == 'pending' then
  increment('callbacks.delivered')
  if row.kind == 'processing' or row.kind == 'updated' then
    settle_event(event, row)
  else
    settle_event(event, row, 'delivered', status)
    redis.call('EXPIRE', name, keep_s)
  end
end
return continue_with(job, lease_s, token)

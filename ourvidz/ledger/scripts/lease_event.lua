-- Lease the oldest pending event of a job for one delivery, if it is due and not leased: deliveries + 1.
-- Arguments: id, lease_s, token (the same token gets the same lease again).
-- Keys: rows, event, due.
-- Returns: { event id, its hash }, or false.
-- Events: none.
local id, lease_s, token = unpack(ARGV, 4)

return lease_oldest(id, lease_s, token)

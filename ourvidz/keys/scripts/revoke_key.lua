-- Revoke a key: none of its secrets is valid any more. Its record stays, for the list.
-- Arguments: prefix, id.
-- Keys: apikey.
-- Returns: 1, also for one that was revoked before; 0 when there is no such key.
-- Events: none.
local prefix, id = unpack(ARGV, 1)

local record = prefix .. 'apikey:' .. id
if redis.call('EXISTS', record) == 0 then return 0 end
-- A deletion first: a full server refuses no script that begins with one.
redis.call('HDEL', record, 'hash', 'previous_hash', 'previous_until')
redis.call('HSETNX', record, 'revoked_at', redis.call('TIME')[1])
return 1

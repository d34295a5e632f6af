-- Find ids in a user's index that are not jobs of this user, and remove them if asked to.
-- Arguments: user, repair ('1' mends).
-- Keys: index:user, job.
-- Returns: { id, code, detail } for each finding.
-- Events: none.
local user, repair = unpack(ARGV, 4)

local findings, index = {}, key('index', 'user', user)
for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
  if redis.call('TYPE', key('job', id)).ok == 'none' then
    findings[#findings + 1] = { id, 'dangling', "in a user's index without a record" }
    if repair == '1' then redis.call('ZREM', index, id) end
  end
end
return findings

-- Take units from an allowance in advance, for requests that a process then admits on its own: as many as there are, up
-- to a number, but at least one.
-- Arguments: name, quota, window_s, units.
-- Keys: allowance.
-- Returns: { the units taken, the seconds until one is there, what remains, the seconds until the whole quota is there }.
-- Events: none.
local name, quota, window_s, units = unpack(ARGV, 4)
quota, window_s, units = tonumber(quota), tonumber(window_s), tonumber(units)

local there = math.floor(quota - used_of(name, quota, window_s) + 1e-9 * quota)
units = math.max(1, math.min(units, there))
local refused, wait, standings = take({ { name, quota, window_s, units } })
return { refused and 0 or units, timestamp(wait), unpack(standings) }

-- SPDX-License-Identifier: MIT
-- bench/malloc/loads/table.lua - tables, strings and closures that come and go; prints a sum.
local state = 1
local function random(n)
	state = (state * 1103515245 + 12345) % 2147483648
	return state // 65536 % n
end

local sum, kept = 0, {}
for round = 1, 400000 do
	local key = random(20000)
	local item = { name = "item " .. key, values = { round, key, round * key }, more = {} }
	if round % 7 == 0 then
		item.more.f = function() return item.values[3] end
	end
	local old = kept[key]
	if old then
		sum = (sum + #old.name + old.values[1] + (old.more.f and old.more.f() or 0)) % 1000000007
	end
	kept[key] = item
end
local words = {}
for i = 1, 60000 do
	words[#words + 1] = ("%d:%x"):format(i, random(65536))
end
table.sort(words)
local text = table.concat(words, ",")
for word in text:gmatch("%x+:f%x*") do
	sum = sum + #word
end
print(sum, #text)

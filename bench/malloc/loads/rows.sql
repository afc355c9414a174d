-- SPDX-License-Identifier: MIT
-- bench/malloc/loads/rows.sql - inserts, indexes, joins, updates, deletes; then the database is checked.
pragma journal_mode = memory;
pragma synchronous = off;
pragma cache_size = -4000;
create table item (id integer primary key, name text, size integer, body blob);
begin;
with recursive n(i) as (select 1 union all select i + 1 from n where i < 150000)
insert into item select i, 'item ' || (i * 7919 % 150001), i * 31 % 1009, zeroblob(i % 200) from n;
commit;
create index by_name on item (name);
create index by_size on item (size, id);
create table line as select a.id as a, b.id as b from item a join item b on b.id = a.size * 7 + 1;
begin;
update item set name = name || ' changed', body = zeroblob(300) where size % 5 = 0;
delete from item where id % 11 = 3;
commit;
select count(*), sum(size), sum(length(name)), sum(length(body)) from item;
select count(*), sum(a), sum(b) from line;
select size, group_concat(id % 10, '') from item where size < 5 group by size;
select upper(substr(name, 1, 6)), count(distinct size) from item group by 1;
vacuum;
pragma integrity_check;

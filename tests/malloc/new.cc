// SPDX-License-Identifier: MIT
// tests/malloc/new.cc - the operators new and delete of C++, in all their forms. Prints TAP.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <malloc.h>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

unsigned number, failed;
int handled;
void *volatile sink;            // or the compiler would leave the calls out

void ok(bool held, const char *name)
{
	std::printf("%sok %u - new_%s\n", held ? "" : "not ", ++number, name);
	failed += !held;
}

bool is_at(void *p, std::size_t align)
{
	return p && reinterpret_cast<std::uintptr_t>(p) % align == 0;
}

// The compiler must neither know the size nor leave out a pair of new and delete.
std::size_t hidden(std::size_t v)
{
	volatile std::size_t hide = v;
	return hide;
}

void plain_forms()
{
	bool all = true;
	for (std::size_t size : {0, 1, 16, 100, 1000, 5000, 100000, 3000000}) {
		void *p = operator new(hidden(size)), *q = operator new[](hidden(size));
		all = all && is_at(p, 16) && is_at(q, 16) && p != q;
		operator delete(p);
		operator delete[](q);
		p = operator new(hidden(size), std::nothrow);
		q = operator new[](hidden(size), std::nothrow);
		all = all && p && q && p != q;
		operator delete(p, std::nothrow);
		operator delete[](q, std::nothrow);
	}
	operator delete(nullptr);
	operator delete[](nullptr);
	ok(all, "plain_and_nothrow");
}

void sized_forms()
{
	bool all = true;
	for (std::size_t size : {1, 24, 500, 70000, 9000000}) {
		void *p = operator new(hidden(size)), *q = operator new[](hidden(size));
		all = all && malloc_usable_size(p) >= size && malloc_usable_size(q) >= size;
		operator delete(p, size);
		operator delete[](q, size);
	}
	ok(all, "sized_delete");
}

void aligned_forms()
{
	bool all = true;
	for (std::size_t align = 1; align <= 1 << 21; align *= 2) {
		auto a = std::align_val_t(align);
		for (std::size_t size : {1, 100, 5000, 300000}) {
			void *p[4] = { operator new(hidden(size), a), operator new[](hidden(size), a),
				       operator new(hidden(size), a, std::nothrow),
				       operator new[](hidden(size), a, std::nothrow) };
			for (void *block : p)
				all = all && is_at(block, align);
			operator delete(p[0], a);
			operator delete[](p[1], size, a);
			operator delete(p[2], a, std::nothrow);
			operator delete[](p[3], a, std::nothrow);
			p[0] = operator new(hidden(size), a);
			operator delete(p[0], size, a);
		}
	}
	ok(all, "aligned");
}

template<typename F> bool throws_bad_alloc(F f)
{
	try {
		f();
	} catch (const std::bad_alloc &) {
		return true;
	}
	return false;
}

void no_memory()
{
	std::size_t much = hidden(SIZE_MAX / 2 + 100);
	auto align = std::align_val_t(4096);
	ok(throws_bad_alloc([&] { sink = operator new(much); }) &&
	   throws_bad_alloc([&] { sink = operator new[](much); }) &&
	   throws_bad_alloc([&] { sink = operator new(much, align); }) &&
	   throws_bad_alloc([&] { sink = operator new[](much, align); }),
	   "throws_bad_alloc");
	ok(!operator new(much, std::nothrow) && !operator new[](much, std::nothrow) &&
	   !operator new(much, align, std::nothrow) && !operator new[](much, align, std::nothrow),
	   "nothrow_is_null");
}

void give_up_the_third_time()
{
	if (++handled == 3)
		std::set_new_handler(nullptr);
}

void throw_in_handler()
{
	throw std::bad_alloc();
}

void handlers()
{
	std::size_t much = hidden(SIZE_MAX / 2 + 100);
	std::set_new_handler(give_up_the_third_time);
	ok(throws_bad_alloc([&] { sink = operator new(much); }) && handled == 3,
	   "handler_is_called_again");
	handled = 0;
	std::set_new_handler(give_up_the_third_time);
	ok(!operator new(much, std::nothrow) && handled == 3, "handler_and_nothrow");
	handled = 0;
	std::set_new_handler(give_up_the_third_time);
	auto align = std::align_val_t(64);
	ok(throws_bad_alloc([&] { sink = operator new(much, align); }) && handled == 3,
	   "handler_and_alignment");
	std::set_new_handler(throw_in_handler);
	ok(throws_bad_alloc([&] { sink = operator new(much); }), "handler_throws");
	ok(!operator new(much, std::nothrow), "handler_throws_and_nothrow_catches");
	std::set_new_handler(nullptr);
}

struct alignas(256) wide {
	char bytes[300];
};

void library()
{
	std::map<std::string, std::vector<int>> m;
	for (int i = 0; i < 20000; i++)
		m[std::to_string(i % 700) + " and a text too long for the short form"].push_back(i);
	std::size_t sum = 0;
	for (auto &[key, values] : m)
		sum += values.size();
	auto *w = new wide[5];
	ok(sum == 20000 && is_at(w, 256), "library");
	delete[] w;
}

void exceptions()
{
	unsigned caught = 0;
	for (int i = 0; i < 1000; i++) {
		try {
			throw std::runtime_error(std::string(i, 'x'));
		} catch (const std::exception &e) {
			caught += std::string(e.what()).size() == std::size_t(i);
		}
	}
	ok(caught == 1000, "exceptions");
}

}

int main()
{
	plain_forms();
	sized_forms();
	aligned_forms();
	no_memory();
	handlers();
	library();
	exceptions();
	std::printf("1..%u\n", number);
	return failed > 0;
}

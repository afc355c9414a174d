/* SPDX-License-Identifier: MIT */
/* base/list.h - an intrusive doubly linked list. The head is a list_node too; a node that is in
 * no list points to itself (list_init) so that list_del() may be called twice. No locks. */
#ifndef BASE_LIST_H
#define BASE_LIST_H

#include <stdbool.h>

#include "base/bits.h"

struct list_node {
	struct list_node *next;
	struct list_node *prev;
};

static inline void list_init(struct list_node *n)
{
	n->next = n;
	n->prev = n;
}

static inline bool list_is_empty(const struct list_node *head)
{
	return head->next == head;
}

/* Puts @n before @pos; with @pos the head, that is at the end. */
static inline void list_add_before(struct list_node *pos, struct list_node *n)
{
	n->prev = pos->prev;
	n->next = pos;
	pos->prev->next = n;
	pos->prev = n;
}

static inline void list_add_tail(struct list_node *head, struct list_node *n)
{
	list_add_before(head, n);
}

static inline void list_add_head(struct list_node *head, struct list_node *n)
{
	list_add_before(head->next, n);
}

static inline void list_del(struct list_node *n)
{
	n->prev->next = n->next;
	n->next->prev = n->prev;
	list_init(n);
}

/* Removes and returns the first node, or NULL. */
static inline struct list_node *list_pop(struct list_node *head)
{
	struct list_node *n = head->next;

	if (n == head)
		return NULL;
	list_del(n);
	return n;
}

#define list_entry(n, type, member) container_of(n, type, member)

/* The body may remove @it from the list, but nothing else. */
#define list_for_each(it, head) \
	for (struct list_node *it = (head)->next, *it##_next = it->next; it != (head); \
	     it = it##_next, it##_next = it->next)

#endif

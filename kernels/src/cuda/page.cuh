// Tokens of a page of the KV pool. The host has the same number.
#pragma once

constexpr int PAGE_TOKENS = 16;

//! Ids, amounts, jobs, vouchers, receipts and their canonical bytes.

//! The written hashes, one pair per format in the order of [`crate::models::FORMATS`].
//!
//! They change only with the definition of the arithmetic or with the models, never with a kernel.

/// Hashes of the logits' bits over the first positions and over all.
#[derive(Clone, Copy, Debug)]
pub struct Golden {
    pub head: u64,
    pub whole: u64,
}

pub const SHIPPED: [Golden; 8] = [
    Golden { head: 0x14c6_f190_2f6c_9163, whole: 0x5746_b332_d5c2_8dfc },
    Golden { head: 0x14c6_f190_2f6c_9163, whole: 0x5746_b332_d5c2_8dfc },
    Golden { head: 0xb552_d988_a353_d25f, whole: 0x31ec_0158_abcc_3a64 },
    Golden { head: 0xf81c_d70f_cb08_6da6, whole: 0x7190_8770_aad5_e1b6 },
    Golden { head: 0xb912_e5b1_b2d7_ac1b, whole: 0x1023_33b2_af07_60a5 },
    Golden { head: 0xf97f_2d24_d9aa_bc42, whole: 0xd451_4c9a_ba83_3b0c },
    Golden { head: 0x9f53_8c9c_9e97_1b8e, whole: 0x5031_d20a_1a90_c795 },
    Golden { head: 0x32c6_452d_af77_00f5, whole: 0x206e_ffce_4544_d61b },
];

pub const LARGE: [Golden; 8] = [
    Golden { head: 0xc978_a98d_1031_d56a, whole: 0x218e_5ffb_5ed6_5a47 },
    Golden { head: 0xa230_4533_56ff_0163, whole: 0x7103_048c_3917_6875 },
    Golden { head: 0x020d_bc3f_d24a_3425, whole: 0x73be_14a1_f85f_6b15 },
    Golden { head: 0x14f1_76db_358b_9b82, whole: 0x2053_b642_7b8c_c812 },
    Golden { head: 0x93ce_1155_53ca_0d27, whole: 0x1421_291a_7401_9dc5 },
    Golden { head: 0x9ae7_a90c_c35e_5b9c, whole: 0xeaa2_f545_067b_9aaa },
    Golden { head: 0x0f7f_6f15_093b_c8be, whole: 0xbc25_c40c_e060_3f53 },
    Golden { head: 0x921b_7590_d24d_5c0b, whole: 0x8170_1fcd_b2ee_a79b },
];

// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {BatchSettlement} from "../../src/BatchSettlement.sol";
import {IBatchSettlement} from "../../src/interfaces/IBatchSettlement.sol";
import {IDepositCollector} from "../../src/interfaces/IDepositCollector.sol";
import {Vm} from "../Vm.sol";

/// @notice The settlement with its books opened, so that a proof can begin at any of them.
contract OpenBooks is BatchSettlement {
    function setChannel(bytes32 channelId, uint128 balance, uint128 totalClaimed) external {
        channels[channelId] = ChannelState(balance, totalClaimed);
    }

    function setReceiver(address receiver, address token, uint128 totalClaimed, uint128 totalSettled) external {
        receivers[receiver][token] = ReceiverState(totalClaimed, totalSettled);
    }

    function setWithdrawal(bytes32 channelId, uint128 amount, uint40 initiatedAt) external {
        pendingWithdrawals[channelId] = WithdrawalState(amount, initiatedAt);
    }
}

/// @notice A token that moves just what it is told to, which is what the settlement assumes.
contract PlainToken {
    mapping(address account => uint256) public balanceOf;

    function set(address account, uint256 amount) external {
        balanceOf[account] = amount;
    }

    function transfer(address to, uint256 amount) external returns (bool) {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
        return true;
    }
}

/// @notice Hands out tokens from nowhere: as much as it is told to, which need not be what was asked for.
contract AnyCollector is IDepositCollector {
    function collect(address, address token, uint256, bytes32, bytes calldata collectorData) external {
        uint256 given = abi.decode(collectorData, (uint256));
        PlainToken(token).set(msg.sender, PlainToken(token).balanceOf(msg.sender) + given);
    }
}

/// @notice A payer that is a contract: it has signed the vouchers that it says it has, whatever bytes come with them.
contract Payer {
    bytes32 public signed;

    function sign(bytes32 digest) external {
        signed = digest;
    }

    function isValidSignature(bytes32 digest, bytes calldata) external view returns (bytes4) {
        return digest == signed ? bytes4(0x1626ba7e) : bytes4(0xffffffff);
    }
}

/// @notice Proofs over all numbers, by symbolic execution (PyPI `halmos`; forge does not run them).
/// @dev Each begins at any books that fulfil the invariant and makes one call. What is called a proof holds for all
/// values of the arguments of a `check_` function: an induction over every sequence of calls on a channel. The signed
/// forms of claim and refund are not called; they differ in who may call, and share the code that books. The addresses
/// are fixed, which loses nothing: no code depends on their bits.
contract ChannelProofs {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    uint40 private constant DELAY = 1 days;
    address private constant RECEIVER = address(0xb0b);
    address private constant AUTHORIZER = address(0xa0b);
    address private constant STRANGER = address(0xbad);

    OpenBooks private settlement;
    PlainToken private token;
    AnyCollector private collector;
    Payer private payer;
    IBatchSettlement.ChannelConfig private config;
    bytes32 private id;

    /// @dev Before the call.
    uint256 private balanceBefore;
    uint256 private claimedBefore;
    uint256 private receiverBefore;
    uint256 private surplus;

    function setUp() public {
        settlement = new OpenBooks();
        token = new PlainToken();
        collector = new AnyCollector();
        payer = new Payer();
        config = IBatchSettlement.ChannelConfig({
            payer: address(payer),
            payerAuthorizer: address(0),
            receiver: RECEIVER,
            receiverAuthorizer: AUTHORIZER,
            token: address(token),
            withdrawDelay: DELAY,
            salt: bytes32(0)
        });
        id = settlement.getChannelId(config);
    }

    struct Books {
        uint128 balance;
        uint128 claimed;
        uint128 receiverClaimed;
        uint128 receiverSettled;
        /// What other channels and receivers have in the same token, and what somebody sent by mistake.
        uint128 others;
    }

    /// @dev Any books that the contract can have: its token balance is what this channel, this receiver and all others
    /// are owed, in sums that fit 128 bits as every token's supply here does.
    function _begin(Books memory b) private {
        vm.assume(b.claimed <= b.balance && b.receiverSettled <= b.receiverClaimed);
        // A receiver's claims are the sum over its channels, so this channel's are among them.
        vm.assume(b.claimed <= b.receiverClaimed);
        settlement.setChannel(id, b.balance, b.claimed);
        settlement.setReceiver(RECEIVER, address(token), b.receiverClaimed, b.receiverSettled);
        uint256 owed = uint256(b.balance) - b.claimed + b.receiverClaimed - b.receiverSettled;
        vm.assume(owed + b.others <= type(uint128).max);
        token.set(address(settlement), owed + b.others);
        (balanceBefore, claimedBefore, receiverBefore, surplus) = (b.balance, b.claimed, b.receiverClaimed, b.others);
    }

    /// @dev The channel sum: what is held is what is owed and what belongs to others, to the unit.
    function _end() private view returns (uint256 balance, uint256 claimed) {
        (balance, claimed) = settlement.channels(id);
        (uint256 receiverClaimed, uint256 receiverSettled) = settlement.receivers(RECEIVER, address(token));
        assert(claimed <= balance && receiverSettled <= receiverClaimed);
        uint256 owed = balance - claimed + receiverClaimed - receiverSettled;
        assert(token.balanceOf(address(settlement)) == owed + surplus);
        // Claims never fall, and the receiver's rise by just what the channel's did.
        assert(claimed >= claimedBefore && receiverClaimed - receiverBefore == claimed - claimedBefore);
    }

    // ------------------------------------------------------------------ claims

    /// @notice Nobody but the receiver's side claims.
    function check_strangersDoNotClaim(Books memory b, uint128 ceiling, uint128 total, address sender) external {
        vm.assume(sender != RECEIVER && sender != AUTHORIZER);
        _begin(b);
        payer.sign(settlement.getVoucherDigest(id, ceiling));
        vm.prank(sender);
        (bool ok,) = address(settlement).call(abi.encodeCall(settlement.claim, (_rows(ceiling, total))));
        (, uint256 claimed) = _end();
        assert(!ok && claimed == claimedBefore);
    }

    /// @notice Voucher monotonicity: a claim books what the receiver asks for if that is more than before and no more
    /// than the payer signed and has, and otherwise nothing. An older voucher, or the same one again, changes nothing.
    function check_claimsRiseToWhatIsSigned(Books memory b, uint128 ceiling, uint128 total, bool byReceiver) external {
        _begin(b);
        payer.sign(settlement.getVoucherDigest(id, ceiling));
        vm.prank(byReceiver ? RECEIVER : AUTHORIZER);
        (bool ok,) = address(settlement).call(abi.encodeCall(settlement.claim, (_rows(ceiling, total))));
        (uint256 balance, uint256 claimed) = _end();
        assert(balance == balanceBefore);
        // A receiver's claims of all time have to fit 128 bits; beyond that it can claim no more.
        if (uint256(b.receiverClaimed) + balanceBefore - claimedBefore > type(uint128).max) return;
        if (total <= claimedBefore) assert(ok && claimed == claimedBefore);
        else if (total <= ceiling && total <= balance) assert(ok && claimed == total);
        else assert(!ok && claimed == claimedBefore);
    }

    /// @notice What the payer did not sign is not booked, whatever it has signed besides.
    function check_nobodyClaimsUnsigned(Books memory b, uint128 ceiling, uint128 total, bytes32 signed) external {
        _begin(b);
        vm.assume(signed != settlement.getVoucherDigest(id, ceiling));
        payer.sign(signed);
        vm.prank(RECEIVER);
        (bool ok,) = address(settlement).call(abi.encodeCall(settlement.claim, (_rows(ceiling, total))));
        (, uint256 claimed) = _end();
        assert(claimed == claimedBefore && ok == (total <= claimedBefore));
    }

    // ------------------------------------------------------------------ the channel sum, call by call

    function check_sumAfterDeposit(Books memory b, uint128 amount, uint256 given) external {
        _begin(b);
        vm.assume(given <= type(uint128).max);
        bytes memory data = abi.encode(given);
        (bool ok,) =
            address(settlement).call(abi.encodeCall(settlement.deposit, (config, amount, address(collector), data)));
        (uint256 balance, uint256 claimed) = _end();
        assert(claimed == claimedBefore);
        if (ok) assert(given == amount && amount > 0 && balance == balanceBefore + amount);
        else assert(balance == balanceBefore);
    }

    function check_sumAfterSettle(Books memory b) external {
        _begin(b);
        (bool ok,) = address(settlement).call(abi.encodeCall(settlement.settle, (RECEIVER, address(token))));
        _end();
        assert(ok && token.balanceOf(RECEIVER) == uint256(b.receiverClaimed) - b.receiverSettled);
    }

    function check_sumAfterRefund(Books memory b, uint128 amount, address sender) external {
        _begin(b);
        vm.prank(sender);
        (bool ok,) = address(settlement).call(abi.encodeCall(settlement.refund, (config, amount)));
        (uint256 balance, uint256 claimed) = _end();
        assert(claimed == claimedBefore && balance <= balanceBefore);
        assert(token.balanceOf(address(payer)) == balanceBefore - balance);
        if (ok) assert(amount > 0 && (sender == RECEIVER || sender == AUTHORIZER));
        else assert(balance == balanceBefore);
    }

    function check_sumAfterInitiate(Books memory b, uint128 amount, address sender) external {
        _begin(b);
        vm.prank(sender);
        (bool ok,) = address(settlement).call(abi.encodeCall(settlement.initiateWithdraw, (config, amount)));
        (uint256 balance, uint256 claimed) = _end();
        assert(balance == balanceBefore && claimed == claimedBefore);
        // With `payerAuthorizer` zero only the payer itself is on the payer's side.
        if (ok) assert((sender == address(payer) || sender == address(0)) && amount <= balance - claimed);
    }

    function check_sumAfterFinalize(Books memory b, uint128 pending, uint40 initiatedAt, uint40 time) external {
        _begin(b);
        settlement.setWithdrawal(id, pending, initiatedAt);
        vm.warp(time);
        vm.prank(address(payer));
        (bool ok,) = address(settlement).call(abi.encodeCall(settlement.finalizeWithdraw, (config)));
        (uint256 balance, uint256 claimed) = _end();
        // What was claimed is out of the payer's reach, and before the delay everything is.
        assert(claimed == claimedBefore && balanceBefore - balance <= pending);
        assert(token.balanceOf(address(payer)) == balanceBefore - balance);
        if (ok) assert(initiatedAt != 0 && uint256(time) >= uint256(initiatedAt) + DELAY);
        else assert(balance == balanceBefore);
    }

    function _rows(uint128 ceiling, uint128 total) private view returns (IBatchSettlement.VoucherClaim[] memory rows) {
        rows = new IBatchSettlement.VoucherClaim[](1);
        rows[0] = IBatchSettlement.VoucherClaim({
            voucher: IBatchSettlement.Voucher({channel: config, maxClaimableAmount: ceiling}),
            signature: "",
            totalClaimed: total
        });
    }
}
